"""Every error that the library raises on purpose: one tree, each member also a builtin."""


class RecompError(Exception):
    """Base of all errors whose message is meant for the user, as one line."""

    def __str__(self) -> str:
        # A value in the message may have line ends in it.
        return " ".join(super().__str__().split())


class ConfigError(RecompError, ValueError):
    """An unknown option, or a value outside what the option allows."""


class ImageError(RecompError, ValueError):
    """A file that is not a usable picture."""


class ImageNotFoundError(ImageError, FileNotFoundError):
    """No picture at that path."""


class QuestionError(RecompError, ValueError):
    """A question that cannot be asked: empty, or with a reserved placeholder in it."""


class ContextLengthError(RecompError, ValueError):
    """Prompt, visual tokens and answer together exceed the language model's context."""


class StateError(RecompError, RuntimeError):
    """A KV cache that cannot be continued, because it was continued before or belongs elsewhere."""


class CheckpointError(RecompError, ValueError):
    """A folder that is not a usable checkpoint: a wrong key, shape, type or field."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """A checkpoint folder, or a file that it must hold, does not exist."""


class BundleError(RecompError, ValueError):
    """A folder that is not a usable bundle: a changed file, another format, a wrong field."""


class BundleNotFoundError(BundleError, FileNotFoundError):
    """A bundle folder, or a file that it must hold, does not exist."""


class FeatureError(RecompError, ArithmeticError):
    """NaN or infinity in the outputs of the towers or of the language model."""


class DeviceError(RecompError, RuntimeError):
    """The device that was asked for does not exist on this machine."""


class MissingDependencyError(RecompError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


class RecompWarning(UserWarning):
    """Something was changed on the way that the user should know of."""
