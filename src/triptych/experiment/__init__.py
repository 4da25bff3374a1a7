"""The objects of a run, built once: its data, its model, how samples are drawn, what they are measured against."""
