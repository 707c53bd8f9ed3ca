"""The import path that :mod:`pyro_naf.files.atomic` had before 0.2."""

from .files.atomic import ReplacedFolder, check_file, open_file, replace_file

__all__ = ["ReplacedFolder", "check_file", "open_file", "replace_file"]
