"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """A mistake in what the user gave: a config key, a file, a checkpoint, a device count.

    The message is one sentence that names the file, line or key and says what to do. Commands print it to
    standard error and exit with code 2; nothing that was already written is touched.
    """
