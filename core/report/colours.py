"""Colours that stand behind text: by classes, for light and dark pages, with ink that is readable on each.

A diverging scale, orange below and blue above zero (the palette's hues, told apart by colour-blind readers
too), and a sequential one. Both start at the page's ground and are even to the eye (Ottosson's Oklab).
"""

import re

import numpy as np

DIVERGING_STEPS = 8
"""Classes ``n8`` ... ``n1``, ``z``, ``p1`` ... ``p8``."""
SEQUENTIAL_STEPS = 10
"""Classes ``s0`` ... ``s10``."""

# (ground, below, above, sequential) of a page: the scales' ends are light on paper and deep in the dark.
_LIGHT = ("#ffffff", "#f08c3f", "#57a7dc", "#3fb591")
_DARK = ("#14171b", "#b3500a", "#1d6fa8", "#157a5c")
_INKS = ("#16191d", "#ffffff")

_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def colour_classes(scope: str) -> str:
    """CSS of the classes, of elements inside ``scope``.

    The page's ``color-scheme`` chooses; a browser that does not know ``light-dark`` shows the light ones.
    """
    rules = []
    for name, light, dark in zip(_names(), _scales(*_LIGHT), _scales(*_DARK), strict=True):
        inks = ink_on(light), ink_on(dark)
        rules.append(
            f"{scope} .{name} {{ background: {light}; background: light-dark({light}, {dark}); "
            f"color: {inks[0]}; color: light-dark({inks[0]}, {inks[1]}); }}"
        )
    return "\n".join(rules)


def ink_on(background: str) -> str:
    """The ink that is read best on a colour."""
    return max(_INKS, key=lambda ink: contrast(ink, background))


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours, 1 to 21 (WCAG 2.2)."""
    a, b = sorted((float(_linear(each) @ (0.2126, 0.7152, 0.0722)) for each in (one, other)), reverse=True)
    return (a + 0.05) / (b + 0.05)


def _names() -> list[str]:
    below = [f"n{step}" for step in range(DIVERGING_STEPS, 0, -1)]
    above = [f"p{step}" for step in range(1, DIVERGING_STEPS + 1)]
    return [*below, "z", *above, *(f"s{step}" for step in range(SEQUENTIAL_STEPS + 1))]


def _scales(ground: str, below: str, above: str, sequential: str) -> list[str]:
    """A colour for each of the names."""
    left, right = (_between(ground, end, DIVERGING_STEPS) for end in (below, above))
    return [*left[:0:-1], ground, *right[1:], *_between(ground, sequential, SEQUENTIAL_STEPS)]


def _between(start: str, end: str, steps: int) -> list[str]:
    """``steps + 1`` colours from one to the other, both among them."""
    a, b = _oklab(start), _oklab(end)
    return [_hex(a + (b - a) * step / steps) for step in range(steps + 1)]


def _linear(colour: str) -> np.ndarray:
    channels = np.array([int(two, 16) / 255 for two in re.findall("[0-9a-f]{2}", colour)])
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def _oklab(colour: str) -> np.ndarray:
    found: np.ndarray = _TO_LAB @ np.cbrt(_TO_LMS @ _linear(colour))
    return found


def _hex(lab: np.ndarray) -> str:
    linear = np.linalg.solve(_TO_LMS, np.linalg.solve(_TO_LAB, lab) ** 3).clip(0, 1)
    channels = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return "#" + "".join(f"{round(255 * one):02x}" for one in channels)
