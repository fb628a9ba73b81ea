"""Paths among the parameters: environment variables, `~` and the project's folder resolved, and looked up on disk."""

import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, ValidationInfo

from cpsd_lib.workbench.yaml_files import repo_root


def _path(kind, is_there, builtin=None, hint=""):
    """Return the type of a path of a `kind`, "folder" or "file", that must be there; builtin: a word that is taken as it is."""

    def resolve(path, info: ValidationInfo):
        if path == builtin or (info.context is not None and not info.context["paths"]):
            return path  # paths=False: a look at a run whose data is elsewhere
        if not path.strip():
            raise ValueError(f"an empty path{hint}")
        text = os.path.expanduser(path)
        # From the project's folder, as a file has it, or else from where the user types.
        here = [str(start / text) for start in (repo_root(), Path.cwd())]
        if not any(map(is_there, here)):  # else a `$` is part of its name
            text = os.path.expandvars(text)
            if "$" in text:
                unset = " and ".join(re.findall(r"\$\{?(\w+)", text)) or "$"
                raise ValueError(f"the environment variable {unset} is not set; set it, or give the path itself{hint}")
        here = [str(start / text) for start in (repo_root(), Path.cwd())]
        found = next(filter(is_there, here), None)
        if found is None:
            where = "a relative path starts at the project's folder, or where the command is typed"
            raise ValueError(f"there is no {kind} {here[0]} ({where}){hint}")
        return found

    return Annotated[str, AfterValidator(resolve)]


Folder = _path("folder", os.path.isdir)
File = _path("file", os.path.isfile)
LabelVectors = _path("file", os.path.isfile, builtin="learned")
# Leaving the line out would not help: a parameter file may set it.
_OTHERS = (
    "; weights: null (on the command line model.weights=null) starts from random ones, weights: imagenet fetches timm's"
)
Weights = _path("file", os.path.isfile, builtin="imagenet", hint=_OTHERS)
