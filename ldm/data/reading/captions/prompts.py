"""Prompts as image generators write them into their images: as text followed by settings, or as JSON."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

_SETTINGS = re.compile(r"\n(Negative prompt|Steps): .*", re.DOTALL)  # Automatic1111's, after the prompt
_MIDJOURNEY = re.compile(r"(\s+--[a-z]+(\s+[^-\s]\S*)*)*\s*Job ID: [-0-9a-f]+$", re.IGNORECASE)
_DREAM = re.compile(r'"(.*?)" -[a-zA-Z] .*', re.DOTALL)  # earlier versions of InvokeAI
_NAMES = ("prompt", "positive_prompt", "Prompt", "Positive prompt", "positivePrompt", "c")  # the last is Draw Things'
_DEPTH = 3  # mappings within mappings
# Inputs of ComfyUI's nodes that hold text, and those that lead to it.
_WORDS = ("text", "text_g", "clip_l", "t5xxl", "prompt", "positive_prompt", "text_positive", "string", "value")
_SAMPLED = ("positive", "guider", "conditioning")


def prompt_of(text: str) -> str:
    """The prompt in a text that a generator wrote; any other text as it is. JSON isn't a caption: of it the prompt, or
    nothing."""
    text = text.strip()
    if text[:1] in ("{", "["):
        try:
            return _of_json(json.loads(text))
        except (ValueError, RecursionError):
            pass
    if match := _DREAM.fullmatch(text):
        return match[1]
    return _MIDJOURNEY.sub("", _SETTINGS.sub("", text)).strip()


def _of_json(value: Any) -> str:
    items = value.items() if isinstance(value, Mapping) else ()
    nodes = {str(name): node for name, node in items if isinstance(node, Mapping)}
    if any("class_type" in node for node in nodes.values()):
        return _of_graph(nodes)
    return _named(value, _DEPTH)


def _named(value: Any, deep: int) -> str:
    """The first text under a key for prompts in a mapping, or in mappings and lists inside it."""
    within: Iterable[Any] = value if isinstance(value, list) else ()
    if isinstance(value, Mapping):
        if text := next((value[name] for name in _NAMES if isinstance(value.get(name), str) and value[name]), ""):
            return text
        within = value.values()
    return next((text for part in within if (text := _named(part, deep - 1))), "") if deep else ""


def _of_graph(nodes: Mapping[str, Mapping[str, Any]]) -> str:
    """The positive prompt that ComfyUI's graph leads to the sampler, or the text of its first text encoder."""
    for name in _SAMPLED:
        for node in nodes.values():
            if text := _follow(nodes, _inputs(node).get(name), set()):
                return text
    encoders = [_inputs(node) for node in nodes.values() if "TextEncode" in str(node.get("class_type"))]
    return next((inputs["text"] for inputs in encoders if isinstance(inputs.get("text"), str)), "")


def _follow(nodes: Mapping[str, Mapping[str, Any]], link: Any, seen: set[str]) -> str:
    """The text at the end of a link [node, number], following the nodes in between."""
    if not isinstance(link, list) or not link or str(link[0]) in seen:
        return ""
    seen.add(str(link[0]))
    inputs = _inputs(nodes.get(str(link[0]), {}))
    if text := next((inputs[name] for name in _WORDS if isinstance(inputs.get(name), str) and inputs[name]), ""):
        return text
    onward = [inputs[name] for name in _WORDS if name in inputs] or list(inputs.values())
    return next((text for value in onward if (text := _follow(nodes, value, seen))), "")


def _inputs(node: Mapping[str, Any]) -> Mapping[str, Any]:
    inputs = node.get("inputs")
    return inputs if isinstance(inputs, Mapping) else {}
