"""Owns the few shapes that things are built of: points in, polygons out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Points = np.ndarray  # float (n, 2), x then y, y downwards


def polygon(*corners: tuple[float, float]) -> Points:
    """(n, 2)"""
    return np.array(corners, dtype=float)


def box(left: float, top: float, right: float, bottom: float) -> Points:
    """(4, 2)"""
    return polygon((left, top), (right, top), (right, bottom), (left, bottom))


def arc(
    centre: tuple[float, float],
    radii: tuple[float, float],
    *,
    degrees: tuple[float, float] = (0, 360),
    steps: int = 20,
) -> Points:
    """Points on an ellipse, clockwise on the screen from the right; (steps, 2)."""
    angle = np.radians(np.linspace(degrees[0], degrees[1], steps))
    return np.stack([centre[0] + radii[0] * np.cos(angle), centre[1] + radii[1] * np.sin(angle)], axis=1)


def band(path: Points, width: float) -> Points:
    """A ribbon of constant width along a path; (2n, 2)."""
    along = np.gradient(path, axis=0)
    normal = along[:, ::-1] * (-1, 1)
    normal *= width / 2 / np.maximum(np.hypot(normal[:, :1], normal[:, 1:]), 1e-9)
    return np.concatenate([path + normal, (path - normal)[::-1]])


def mirrored(right: Sequence[tuple[float, float]]) -> Points:
    """A shape symmetric about x = 0 from its right side, listed top to bottom; (2n, 2)."""
    side = polygon(*right)
    return np.concatenate([side, (side * (-1, 1))[::-1]])


def point_along(path: Points, share: float) -> tuple[float, float]:
    """The point at a share (0 .. 1) of the way along a path of equally long steps."""
    place = share * (len(path) - 1)
    i = min(int(place), len(path) - 2)
    x, y = (path[i] + (path[i + 1] - path[i]) * (place - i)).tolist()
    return x, y


def flower(centre: tuple[float, float], radius: float) -> Points:
    """Five petals; (30, 2)."""
    angle = np.linspace(0, 2 * np.pi, 31)[:-1]
    reach = radius * (0.82 + 0.18 * np.cos(5 * angle))
    return np.stack([centre[0] + reach * np.cos(angle), centre[1] + reach * np.sin(angle)], axis=1)
