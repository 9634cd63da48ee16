"""Caffe's message classes, from a private descriptor pool.

The pool is our own, so that importing caffeport beside pycaffe, OpenCV's tools or any other
`caffe_pb2` never collides with them. `caffe.binpb` is proto/caffe.proto compiled (`make proto`).
"""

from importlib import resources
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

Message = Any  # protobuf builds these classes at run time, from the descriptors

_POOL = descriptor_pool.DescriptorPool()
_FILES = descriptor_pb2.FileDescriptorSet.FromString(resources.files(__package__).joinpath("caffe.binpb").read_bytes())
for _file in _FILES.file:
    _POOL.Add(_file)


def message_class(name: str) -> Any:
    """The class of message `name`, such as "NetParameter" or "PriorBoxParameter"."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"caffe.{name}"))


BlobProto = message_class("BlobProto")
LayerParameter = message_class("LayerParameter")
NetParameter = message_class("NetParameter")
SolverParameter = message_class("SolverParameter")
V1LayerParameter = message_class("V1LayerParameter")
