"""Proves that a converted net computes what Caffe computes, layer by layer: `caffeport.verify`."""

from ._verify import verify
from .judge import Limits
from .reference import Reference
from .report import Report

__all__ = ["Limits", "Reference", "Report", "verify"]
