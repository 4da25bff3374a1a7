"""diffusers' ``UNet2DModel`` as a network, with the timesteps of a ``DDPMPipeline``.

The timestep is a position in a table of betas.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from torch import Tensor

from triptych.declare import Count, MinLen, Positive, Role, Share, Whole
from triptych.diffusion.betas import Betas
from triptych.errors import UserError
from triptych.networks.adapter import Adapter
from triptych.networks.base import check_halves, image_shape

Down = Sequence[Literal["DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"]]
Up = Sequence[Literal["UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"]]


class UNet2D(Adapter):
    """diffusers' ``UNet2DModel``, with its keys and defaults.

    Arguments that follow from ``shape`` and ``outputs`` are set by this class. ``checkpointing``:
    see ``ImageNetwork``.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        schedule: Betas,
        outputs: int = 1,
        center_input_sample: bool = False,
        time_embedding_dim: Count | None = None,
        freq_shift: Whole = 0,
        flip_sin_to_cos: bool = True,
        down_block_types: Down = (
            "DownBlock2D",
            "AttnDownBlock2D",
            "AttnDownBlock2D",
            "AttnDownBlock2D",
        ),
        mid_block_type: Literal["UNetMidBlock2D", None] = "UNetMidBlock2D",
        up_block_types: Up = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        block_out_channels: Annotated[Sequence[Count], MinLen(1)] = (224, 448, 672, 896),
        layers_per_block: Count = 2,
        mid_block_scale_factor: Positive = 1,
        downsample_padding: Whole = 1,
        downsample_type: Literal["conv", "resnet"] = "conv",
        upsample_type: Literal["conv", "resnet"] = "conv",
        dropout: Share = 0.0,
        act_fn: Literal["silu", "swish", "mish", "gelu", "relu"] = "silu",
        attention_head_dim: Count | None = 8,
        norm_num_groups: Count = 32,
        attn_norm_num_groups: Count | None = None,
        norm_eps: Positive = 1e-5,
        resnet_time_scale_shift: Literal["default", "scale_shift"] = "default",
        add_attention: bool = True,
        checkpointing: Annotated[bool, Role.MACHINE] = False,
        **contract: Any,
    ):
        sizes = dict(locals())
        own_arguments = (
            "self",
            "shape",
            "schedule",
            "outputs",
            "checkpointing",
            "contract",
            "__class__",
        )
        for name in own_arguments:
            sizes.pop(name, None)
        try:
            from diffusers.models.unets.unet_2d import UNet2DModel
        except ImportError as error:
            raise UserError(
                "denoiser=unet2d: diffusers is not installed; pip install 'triptych[diffusers]'"
            ) from error
        image = image_shape(shape, "unet2d")
        channels, *size = image
        if not isinstance(schedule, Betas) or contract.get("conditions"):
            raise ValueError("denoiser=unet2d: needs schedule=betas and model.conditional=false")
        check_halves(image, block_out_channels, "block_out_channels")
        sizes |= {"sample_size": size, "in_channels": channels, "out_channels": channels * outputs}
        network = UNet2DModel(**sizes)
        if checkpointing:
            network.enable_gradient_checkpointing()
        super().__init__(network, shape, outputs=outputs, **contract)
        self._timestep = schedule.timestep

    def timestep(self, gamma: Tensor) -> Tensor:
        return self._timestep(gamma)
