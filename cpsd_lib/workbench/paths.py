"""Paths among the parameters: environment variables, `~` and the project's folder resolved, and looked up on disk."""

import os
import re

from pydantic import ValidationInfo

from cpsd_lib.workbench.yaml_files import repo_root


def _expanded(path):
    if not path.strip():
        raise ValueError("an empty path")
    text = os.path.expanduser(os.path.expandvars(path))
    if "$" in text:
        unset = " and ".join(re.findall(r"\$\{?(\w+)", text)) or "$"
        raise ValueError(f"the environment variable {unset} is not set; set it, or give the path itself")
    return str(repo_root() / text)


def folder(path, info: ValidationInfo):
    """Return the path of a folder; ValueError where there is none."""
    return _existing(path, info, "folder", os.path.isdir)


def file(path, info: ValidationInfo):
    """Return the path of a file; ValueError where there is none."""
    return _existing(path, info, "file", os.path.isfile)


def _existing(path, info, kind, is_there):
    if info.context is not None and not info.context["paths"]:
        return path  # a look at a run whose data is elsewhere
    resolved = _expanded(path)
    if not is_there(resolved):
        raise ValueError(f"there is no {kind} {resolved} (a relative path starts at the project's folder)")
    return resolved


def weights(source, info: ValidationInfo):
    """Return "imagenet" or the path of a file; ValueError, with what else there is, where there is none."""
    try:
        return source if source == "imagenet" else file(source, info)
    except ValueError as error:  # leaving the line out would not help: a parameter file may set it
        others = (
            "weights: null (on the command line model.weights=null) starts from random ones, weights: imagenet fetches"
        )
        raise ValueError(f"{error}; {others} timm's") from None


def label_vectors(source, info: ValidationInfo):
    """Return "learned" or the path of a file; ValueError where there is none."""
    return source if source == "learned" else file(source, info)
