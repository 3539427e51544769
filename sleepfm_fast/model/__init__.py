"""The encoders' fused blocks, precisions and checkpoints; :mod:`sleepfm_fast.encoder` is the door."""
