"""Modules for what torch.nn lacks. They know nothing of Caffe's messages and compute from the tensors in hand."""
