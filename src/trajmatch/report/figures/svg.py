"""Matplotlib's SVG made part of a page: colors from the page, text as text, values under a pointer.

What remains of matplotlib's file are shapes and texts. Groups, definitions, clip paths, metadata
and fonts are dropped, so there are no ids that two figures on a page could share, and the same
numbers give the same bytes. An artist marked by `theme.tag` becomes a group with that class and
a <title>, which browsers show beside the pointer.
"""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from typing import Any
from xml.etree.ElementTree import Element, SubElement

from trajmatch.report.figures.theme import VARIABLES

_SVG, _LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
_DROPPED = {"font-family", "stroke-linejoin", "stroke-miterlimit"}
_NUMBER = re.compile(r"-?\d+\.\d+")


def inline_svg(canvas: Any, attributes: Mapping[str, str]) -> Element:
    """The figure `canvas` (72 dots per inch) as an <svg> element with `attributes`."""
    file = io.StringIO()
    canvas.savefig(file, format="svg")
    source = ElementTree.fromstring(file.getvalue())
    shapes = {path.get("id", ""): path for path in source.iter(f"{_SVG}path")}
    root = Element("svg", {"viewBox": source.get("viewBox", ""), "role": "img", **attributes})
    for child in source:
        _convert(child, root, shapes)
    return root


def markup(root: Element) -> str:
    """An element as text for HTML."""
    return ElementTree.tostring(root, encoding="unicode")


def _convert(element: Element, parent: Element, shapes: Mapping[str, Element]) -> None:
    kind = element.tag.removeprefix(_SVG)
    if kind == "g":
        name, marked, title = element.get("id", "").partition("|")
        if marked:
            parent = SubElement(parent, "g", {"class": name})
            if title:
                SubElement(parent, "title").text = title
        for child in element:
            _convert(child, parent, shapes)
    elif kind == "use":
        _use(element, parent, shapes)
    elif kind == "path":
        SubElement(parent, "path", {"d": _path(element), "style": _style(element)})
    elif kind == "text":
        place = {name: _round(element.get(name, "0")) for name in ("x", "y")}
        turned = element.get("transform", "")
        if turned and not turned.startswith("rotate(-0 "):
            place["transform"] = _round(turned)
        text = SubElement(parent, "text", {**place, "style": _style(element)})
        text.text = element.text


def _use(element: Element, parent: Element, shapes: Mapping[str, Element]) -> None:
    """A mark that is defined once and used at a place: the mark itself, at that place."""
    shape = shapes[element.get(_LINK, "").removeprefix("#")]
    x, y = (_round(element.get(name, "0")) for name in ("x", "y"))
    path, style = _path(shape), _style(element)
    if "C" in path:  # of the marks in use only the circle is curved; it begins at its top or bottom
        radius = _round(str(abs(float(path[1:].split("C")[0].split()[1]))))
        SubElement(parent, "circle", {"cx": x, "cy": y, "r": radius, "style": style})
    else:
        moved = {"transform": f"translate({x} {y})"}
        SubElement(parent, "path", {"d": path, **moved, "style": style})


def _path(element: Element) -> str:
    """The points of a path to a tenth of a pixel, without needless spaces."""
    return re.sub(r"\s*([A-Za-z])\s*", r"\1", _round(" ".join(element.get("d", "").split())))


def _style(element: Element) -> str:
    parts = []
    for part in element.get("style", "").split(";"):
        name, _, value = (text.strip() for text in part.partition(":"))
        if not name or name in _DROPPED:
            continue
        variable = VARIABLES.get(value)
        parts.append(f"{name}:{f'var({variable})' if variable else value}")
    return ";".join(parts)


def _round(text: str) -> str:
    return _NUMBER.sub(lambda found: f"{float(found[0]):.1f}".removesuffix(".0"), text)
