"""One password in secrets.yaml, set by program: everything else stays as a hand has written it. Pure: text in, text out.

The parser says where things stand and the text between is cut and pasted. The result is read back and must say exactly what
was wanted, else a person must do it (anchors, tags, block scalars).
"""

from __future__ import annotations

import json
from typing import Any

import yaml

from gateway.errors import ConfigError, Conflict

__all__ = ["set_user"]

_NULL = "tag:yaml.org,2002:null"


def set_user(text: str, sub: str, stored: str) -> str:
    """secrets.yaml with `stored` (an argon2 hash) as the password of `sub`. Raises ConfigError when the file is no YAML mapping,
    Conflict when it is past editing by program.
    """
    root = _compose(text)
    before = _said(root)
    edited = _edit(text, root, sub, stored)
    wanted = {**before, "users": {**before.get("users", {}), sub: stored}}
    try:
        done = _said(_compose(edited)) == wanted
    except ConfigError:
        done = False
    if not done:
        raise Conflict(
            f"secrets.yaml can't be changed by program; put this under users: {sub}: {json.dumps(stored)}"
        )
    return edited


def _edit(text: str, root: yaml.MappingNode | None, sub: str, stored: str) -> str:
    entry = f"{json.dumps(sub)}: {json.dumps(stored)}"
    users = None if root is None else next((v for k, v in root.value if k.value == "users"), None)
    if users is None:
        if root is not None and root.flow_style:
            raise Conflict("secrets.yaml is one flow mapping: add `users: {}` to it first")
        gap = "" if not text or text.endswith("\n") else "\n"
        return f"{text}{gap}users:\n  {entry}\n"
    start, end = users.start_mark.index, users.end_mark.index
    if not isinstance(users, yaml.MappingNode):  # `users:` with nothing behind it
        return f"{text[:start]}\n  {entry}{text[end:]}"
    for key, value in users.value:
        if key.value == sub:
            return text[: value.start_mark.index] + json.dumps(stored) + text[value.end_mark.index :]
    if users.flow_style:
        comma = ", " if users.value else ""
        return f"{text[: end - 1].rstrip()}{comma}{entry}{text[end - 1 :]}"
    first = users.value[0][0].start_mark
    return f"{text[: first.index]}{entry}\n{' ' * first.column}{text[first.index :]}"


def _compose(text: str) -> yaml.MappingNode | None:
    try:
        root: Any = yaml.compose(text, Loader=yaml.SafeLoader)  # nodes only; its marks count characters
    except (yaml.YAMLError, RecursionError):
        # Never quoted: the problem's context may be a secret.
        raise ConfigError(["secrets.yaml: is no YAML; `gateway check` names the line"]) from None
    if root is None or root.tag == _NULL:
        return None
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(["secrets.yaml: should be a mapping"])
    return root


def _said(node: Any) -> Any:
    """What a node says, however it is written."""
    match node:
        case None:
            return {}
        case yaml.MappingNode():
            said = {str(key.value): _said(value) for key, value in node.value}
            if len(said) != len(node.value):
                raise Conflict("a key stands twice in secrets.yaml: `gateway check` names it")
            return said
        case yaml.SequenceNode():
            return [_said(item) for item in node.value]
        case yaml.ScalarNode(tag=tag) if tag == _NULL:
            return {}
    return str(node.value)
