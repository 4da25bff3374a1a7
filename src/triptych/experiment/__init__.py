"""The objects of a run, built once: data, model, how samples are drawn and what they are measured against."""
