"""Every exception and warning that caffeport raises on purpose.

CaffeportError
  FormatError         the bytes or the text are not what they should be, or end early
  UnsupportedLayer    the file is sound; nobody describes this layer type or parameter
  ShapeError          blob shapes do not fit; real Caffe aborts at the same layer
  WeightsError        weights and net do not belong together, or numbers are not finite
  ReferenceMismatch   the arrays to compare with are not this net's
  InputError          the caller's arrays or arguments do not fit the net
"""


class CaffeportError(Exception):
    """Base of all errors that bad input can cause; never raised itself. The command line ends with status 2 for it."""


class FormatError(CaffeportError):
    """The bytes or the text are not a Caffe file, or end early."""


class UnsupportedLayer(CaffeportError):
    """The file is sound, but nobody describes this layer type or this use of its parameters."""


class ShapeError(CaffeportError):
    """Blob shapes do not fit each other or the weights."""


class WeightsError(CaffeportError):
    """Weights and net do not belong together, or a number is not finite."""


class ReferenceMismatch(CaffeportError):
    """The arrays to compare with are not this net's."""


class InputError(CaffeportError):
    """The caller's arrays or arguments do not fit the net."""


class CaffeportWarning(UserWarning):
    """Something that was read or built, but that the owner of the file should know."""
