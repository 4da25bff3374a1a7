import math, torch
from torch import nn, Tensor
import torch.nn.functional as F

class Norm(nn.Module):
    def __init__(s, c, kind='ln'):
        super().__init__(); s.kind=kind
        s.n = nn.LayerNorm(c) if kind=='ln' else nn.GroupNorm(8, c)
    def forward(s,h):
        if s.kind=='ln': return s.n(h.permute(0,2,3,1)).permute(0,3,1,2)
        return s.n(h)

class Block(nn.Module):
    def __init__(s, c, e, drop, norm):
        super().__init__()
        s.n1=Norm(c,norm); s.c1=nn.Conv2d(c,c,3,padding=1)
        s.n2=Norm(c,norm); s.c2=nn.Conv2d(c,c,3,padding=1)
        s.emb=nn.Linear(e,2*c); s.drop=drop
        nn.init.zeros_(s.c2.weight); nn.init.zeros_(s.c2.bias); nn.init.zeros_(s.emb.weight); nn.init.zeros_(s.emb.bias)
    def forward(s,x,e):
        h=s.c1(F.silu(s.n1(x)))
        a,b=s.emb(e)[:,:,None,None].chunk(2,1)
        h=torch.addcmul(b,s.n2(h),1+a)
        h=F.silu(h)
        if s.drop: h=F.dropout2d(h,s.drop,s.training)
        return x+s.c2(h)

class Attn(nn.Module):
    def __init__(s,c,norm):
        super().__init__(); s.n=Norm(c,norm); s.qkv=nn.Conv2d(c,3*c,1); s.o=nn.Conv2d(c,c,1)
        nn.init.zeros_(s.o.weight); nn.init.zeros_(s.o.bias)
    def forward(s,x,e):
        B,C,H,W=x.shape
        q,k,v=s.qkv(s.n(x)).permute(0,2,3,1).reshape(B,1,H*W,3*C).chunk(3,-1)
        h=F.scaled_dot_product_attention(q,k,v)
        return x+s.o(h.reshape(B,H,W,C).permute(0,3,1,2))

class Tok(nn.Module):
    """mix positions with a learned 64x64 matrix"""
    def __init__(s,c,norm,hw=64):
        super().__init__(); s.n=Norm(c,norm); s.m=nn.Linear(hw,hw); s.o=nn.Conv2d(c,c,1)
        nn.init.zeros_(s.o.weight); nn.init.zeros_(s.o.bias)
    def forward(s,x,e):
        B,C,H,W=x.shape
        h=s.n(x).permute(0,2,3,1).reshape(B,H*W,C)
        h=F.silu(torch.einsum('ij,bjc->bic',s.m.weight,h)+s.m.bias[:,None])
        return x+s.o(h.reshape(B,H,W,C).permute(0,3,1,2))

class ResNet(nn.Module):
    def __init__(s,shape,outputs=1,num_classes=0,width=48,blocks=4,attention='mid',dropout=.0,fourier=(4,2),spacing=.125,norm='ln',gain=True,skip=True,edim=64):
        super().__init__(); C,H,W=shape; s.outputs=outputs; s.C=C
        s.fw=[2*math.pi/(p*spacing) for p in fourier]
        cin=C*(1+2*len(fourier)); s.skip=skip; s.gain=gain
        s.register_buffer('freq',torch.exp(torch.linspace(math.log(2*math.pi/30),math.log(2*math.pi/1.),16)))
        s.e=nn.Sequential(nn.Linear(32,edim),nn.SiLU(),nn.Linear(edim,edim),nn.SiLU())
        s.cin=nn.Conv2d(cin,width,3,padding=1); s.pos=nn.Parameter(torch.zeros(1,width,H,W)); nn.init.normal_(s.pos,std=.1)
        L=[]
        for i in range(blocks):
            L.append(Block(width,edim,dropout,norm))
            if attention=='mid' and i==blocks//2-1: L.append(Attn(width,norm))
            if attention=='two' and i in (blocks//2-1,blocks-1): L.append(Attn(width,norm))
            if attention=='tok': L.append(Tok(width,norm,H*W))
            if attention=='tok1' and i==blocks//2-1: L.append(Tok(width,norm,H*W))
        s.L=nn.ModuleList(L)
        s.n=Norm(width,norm); s.g=nn.Linear(edim,2*width); nn.init.zeros_(s.g.weight); nn.init.zeros_(s.g.bias)
        s.sk=nn.Linear(edim,cin) if skip else None
        if skip: nn.init.zeros_(s.sk.weight); nn.init.zeros_(s.sk.bias)
        s.out=nn.Conv2d(width+(cin if skip else 0),C*outputs,3 if skip<2 else 1,padding=1 if skip<2 else 0); nn.init.zeros_(s.out.weight); nn.init.zeros_(s.out.bias)
    def forward(s,z,gamma,condition=None):
        f=[z]
        for w in s.fw: f+= [torch.sin(w*z),torch.cos(w*z)]
        f=torch.cat(f,1).contiguous(memory_format=torch.channels_last)
        a=gamma[:,None]*s.freq
        e=s.e(torch.cat([a.sin(),a.cos()],1))
        h=s.cin(f)+s.pos
        for l in s.L: h=l(h,e)
        a,b=s.g(e)[:,:,None,None].chunk(2,1)
        h=s.n(h)
        if s.gain: h=F.silu(h)*a.exp()+b*0
        else: h=F.silu(torch.addcmul(b,h,1+a))
        if s.skip: h=torch.cat([h,f*s.sk(e)[:,:,None,None].exp()],1)
        r=s.out(h)
        if s.outputs>1: r=r.view(len(z),s.outputs,s.C,*z.shape[2:])
        return r
