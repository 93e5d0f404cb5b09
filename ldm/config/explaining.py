"""Errors of Hydra, OmegaConf or YAML in one line, with a next step."""

import re

import yaml
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from ldm.common.errors import did_you_mean

_LITERAL = r"write \${ if ${ is meant as text, as in a folder's name."


def explain(error: Exception) -> str:
    """The message of the UserError that replaces `error`."""
    text = str(error).strip()
    first = text.splitlines()[0] if text else type(error).__name__
    if isinstance(error, OverrideParseException):
        return _unreadable_override(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _missing_choice(error)
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        tab = " YAML is indented with spaces, not tabs." if "'\\t'" in str(error.problem) else ""
        return f"{error.problem_mark.name}, line {error.problem_mark.line + 1}: {error.problem}.{tab}"
    if found := _explain_by_text(text):
        return found
    if isinstance(error, InterpolationKeyError) and error.full_key:
        return f"{error.full_key}: {first}; {_LITERAL}"
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return f"{error.full_key}: {first}"
    if isinstance(error, HydraException | OmegaConfBaseException | yaml.YAMLError):
        return first
    return f"the command line can't be read ({type(error).__name__}: {first})."


def _unreadable_override(error: OverrideParseException) -> str:
    word = str(error.override).lstrip("+")
    key = word.partition("=")[0]
    return f"{word} can't be read; text inside it needs its own quotes, as in \"{key}='a, b'\" or \"{key}=['a','b']\"."


def _missing_choice(error: MissingConfigException) -> str:
    group, _, choice = str(error.missing_cfg_file).removesuffix(".yaml").rpartition("/")
    if group.startswith("hydra/"):
        return f"{group}={choice} needs a package: pip install 'ldm[sweep]'."
    return f"{group}={choice}: there is no such choice.{did_you_mean(choice, error.options or [])}"


def _explain_by_text(text: str) -> str | None:
    """Errors without a class of their own in Hydra, recognised by the start of their text."""
    if match := re.match(r"In 'experiment/([^']+)': Could not override '([^']+)'", text):
        return f"experiment={match[1]} is for stage two: to train its stage one, give its data, as in data=emoji."
    if match := re.match(r"Could not override '([^']+)'", text):
        return f"this command has no group {match[1]}; --help lists what it has."
    if match := re.match(r"Error merging override \+*([^=\s]+)=.*(?<!\\)\$\{", text):
        return f"{match[1]}: what follows ${{ can't be read as a reference; {_LITERAL}"
    if match := re.match(r"Ambiguous value for argument '([^']+)'", text):
        key, _, values = match[1].partition("=")
        key = key.lstrip("+")
        return f"{key} was given several values: add -m for a sweep over them, or write a list as {key}=[{values}]."
    return None
