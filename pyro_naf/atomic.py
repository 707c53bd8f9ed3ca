"""The import path of :mod:`pyro_naf.files.atomic` before version 0.2."""

from .files.atomic import ReplacedFolder, check_file, open_file, replace_file  # noqa: F401
