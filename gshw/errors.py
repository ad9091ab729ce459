"""The one exception class for mistakes that a user can make."""


class GshwError(ValueError):
    """A user's mistake, told in one line: what, the rule, and the value that broke it.

    The command line prints the message and exits with status 2; libraries may catch it.
    Everything else that is raised is a bug of this project.
    """
