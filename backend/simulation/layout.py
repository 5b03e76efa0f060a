# SPDX-License-Identifier: GPL-2.0-or-later
"""The sample scene's ground: which material lies where, how high it stands, and what light it gets.

Everything is drawn on a sub-pixel grid in metres from one seeded generator: a village with streets and roofs,
fields with furrows, a meandering river, a wood of single crowns, roads and tracks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as nn

from .spectra import INDEX, MATERIALS

Tensor = torch.Tensor

SUN_AZIMUTH_DEG = 135.0
"""Direction that the sun stands in, from north over east: shadows fall to the north-west."""
SUN_ELEVATION_DEG = 42.0


def fractal(
    rows: int, cols: int, generator: torch.Generator, slope: float = 2.2, coarsest: float = 1.0
) -> Tensor:
    """Return smooth random relief `[rows, cols]` of mean 0 and standard deviation 1.

    Args:
        rows: height in pixels.
        cols: width in pixels.
        generator: source of randomness (CPU).
        slope: exponent of the power spectrum's fall with frequency: larger is smoother.
        coarsest: longest wavelength kept, as a fraction of the longer side.
    """
    white = torch.randn((rows, cols), generator=generator)
    fy = torch.fft.fftfreq(rows)[:, None]
    fx = torch.fft.rfftfreq(cols)[None, :]
    frequency = torch.hypot(fy, fx)
    lowest = 1.0 / (coarsest * max(rows, cols))
    gain = torch.clamp(frequency, min=lowest) ** (-slope / 2)
    gain[0, 0] = 0.0
    relief = torch.fft.irfft2(torch.fft.rfft2(white) * gain, s=(rows, cols))
    return (relief - relief.mean()) / relief.std().clamp_min(1e-9)


Window = tuple[slice, slice]
Rectangle = tuple[float, float, float, float]
Uniform = Callable[[float, float], float]


@dataclass
class Ground:
    """The scene on its sub-pixel grid.

    Attributes:
        abundance: `[materials, rows, cols]`, fractions that sum to 1.
        height: `[rows, cols]` in metres above ground.
        pixel: size of a sub-pixel in metres.
        brightness: `[rows, cols]` multiplier of reflectance (texture within a class).
    """

    abundance: Tensor
    height: Tensor
    pixel: float
    brightness: Tensor
    generator: torch.Generator = field(repr=False)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the sub-pixel grid."""
        return self.height.shape[0], self.height.shape[1]

    def view(self, window: Window) -> Ground:
        """Return a window of the ground that shares its memory: what is put there is put here."""
        return Ground(
            self.abundance[(slice(None), *window)],
            self.height[window],
            self.pixel,
            self.brightness[window],
            self.generator,
        )

    def put(self, where: Tensor, mixture: dict[str, Tensor | float], height: Tensor | float = 0.0) -> None:
        """Lay a mixture of materials (fractions that sum to 1) where the mask is set."""
        self.abundance.masked_fill_(where[None], 0.0)
        for name, share in mixture.items():
            plane = self.abundance[INDEX[name]]
            plane[where] += share[where] if isinstance(share, Tensor) else share
        self.height[where] = height[where] if isinstance(height, Tensor) else height

    def uniform(self, low: float, high: float) -> float:
        """Return one random number."""
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def noise(self, slope: float = 2.2, coarsest: float = 1.0) -> Tensor:
        """Return fractal relief of the ground's size."""
        return fractal(*self.shape, self.generator, slope, coarsest)


def split(area: Rectangle, smallest: float, uniform: Uniform, longest: float = 3.0) -> list[Rectangle]:
    """Cut a rectangle (u0, v0, u1, v1) at random into parcels whose sides are at least `smallest`."""
    u0, v0, u1, v1 = area
    width, height = u1 - u0, v1 - v0
    wide = width > height * uniform(0.75, 1.35)
    side = width if wide else height
    if side < 2 * smallest or (side < longest * smallest and uniform(0, 1) < 0.25):
        return [area]
    cut = (u0 if wide else v0) + side * uniform(0.38, 0.62)
    one, two = ((u0, v0, cut, v1), (cut, v0, u1, v1)) if wide else ((u0, v0, u1, cut), (u0, cut, u1, v1))
    return split(one, smallest, uniform, longest) + split(two, smallest, uniform, longest)


def rotated(x: Tensor, y: Tensor, degrees: float) -> tuple[Tensor, Tensor]:
    """Return coordinates along axes turned by an angle."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return x * c + y * s, -x * s + y * c


@dataclass
class Frame:
    """Axes turned against the pixel grid: their coordinates in metres at every sub-pixel.

    Attributes:
        u: `[rows, cols]`.
        v: `[rows, cols]`.
        degrees: the angle.
        pixel: size of a sub-pixel in metres.
    """

    u: Tensor
    v: Tensor
    degrees: float
    pixel: float

    def bounds(self, where: Tensor | None = None) -> Rectangle:
        """Return the smallest rectangle in these axes that holds the (masked) grid."""
        u, v = (self.u, self.v) if where is None else (self.u[where], self.v[where])
        return float(u.min()), float(v.min()), float(u.max()), float(v.max())

    def window(self, rectangle: Rectangle) -> Window | None:
        """Return the rows and columns that a rectangle touches, or None when it lies outside the grid."""
        u0, v0, u1, v1 = rectangle
        corners = torch.tensor([(u0, v0), (u0, v1), (u1, v0), (u1, v1)])
        x, y = rotated(corners[:, 0], corners[:, 1], -self.degrees)
        rows, cols = self.u.shape
        top, bottom = int(y.min() / self.pixel) - 1, int(y.max() / self.pixel) + 2
        left, right = int(x.min() / self.pixel) - 1, int(x.max() / self.pixel) + 2
        if bottom <= 0 or right <= 0 or top >= rows or left >= cols:
            return None
        return slice(max(0, top), min(rows, bottom)), slice(max(0, left), min(cols, right))

    def inside(self, rectangle: Rectangle, window: Window) -> Tensor:
        """Return the distance to the rectangle's nearest side within a window; negative outside."""
        u, v = self.u[window], self.v[window]
        u0, v0, u1, v1 = rectangle
        return torch.minimum(torch.minimum(u - u0, u1 - u), torch.minimum(v - v0, v1 - v))


def crowns(
    ground: Ground, density: Tensor, spacing: float, radius: tuple[float, float], height: tuple[float, float]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return trees on a jittered grid: crown height `[rows, cols]` (0 = none), a number per crown, where.

    Args:
        ground: the scene.
        density: probability `[rows, cols]` that a tree stands at a place.
        spacing: mean distance of trees in metres.
        radius: smallest and largest crown radius in metres.
        height: smallest and largest tree height in metres.
    """
    rows, cols = ground.shape
    step = spacing / ground.pixel
    ny, nx = int(rows / step) + 3, int(cols / step) + 3

    def draw() -> Tensor:
        return torch.rand((ny, nx), generator=ground.generator)

    centre_y = (torch.arange(ny)[:, None] - 1 + draw() * 0.9) * step
    centre_x = (torch.arange(nx)[None, :] - 1 + draw() * 0.9) * step
    at_y = centre_y.long().clamp(0, rows - 1)
    at_x = centre_x.long().clamp(0, cols - 1)
    alive = draw() < density[at_y, at_x]
    size = radius[0] + (radius[1] - radius[0]) * draw()
    tall = height[0] + (height[1] - height[0]) * draw()
    kind = draw()
    y = torch.arange(rows)[:, None].float()
    x = torch.arange(cols)[None, :].float()
    cell_y, cell_x = (y / step).long() + 1, (x / step).long() + 1
    best = torch.zeros(rows, cols)
    who = torch.zeros(rows, cols)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            j, i = (cell_y + dy).clamp(0, ny - 1), (cell_x + dx).clamp(0, nx - 1)
            r = size[j, i] / ground.pixel
            distance = ((y - centre_y[j, i]) ** 2 + (x - centre_x[j, i]) ** 2) / (r * r)
            top = torch.where(
                (distance < 1) & alive[j, i],
                tall[j, i] * (0.45 + 0.55 * (1 - distance).clamp_min(0).sqrt()),
                0.0,
            )
            higher = top > best
            best = torch.where(higher, top, best)
            who = torch.where(higher, kind[j, i].expand(rows, cols), who)
    return best, who, best > 0


def sunlight(height: Tensor, pixel: float) -> tuple[Tensor, Tensor]:
    """Return direct light (0 in shadow, about 1 on flat ground) and sky view (0 to 1), both `[rows, cols]`.

    Shadows are cast by marching along the sun's direction; slopes are lit by the cosine law.
    """
    azimuth, elevation = math.radians(SUN_AZIMUTH_DEG), math.radians(SUN_ELEVATION_DEG)
    towards_x, towards_y = math.sin(azimuth), -math.cos(azimuth)  # rows run south
    rows, cols = height.shape
    shadow = torch.zeros(rows, cols)
    reach = int(float(height.max()) / math.tan(elevation) / pixel) + 1
    padded = nn.pad(height[None, None], (reach,) * 4, mode="replicate")[0, 0]
    for k in range(1, reach + 1):
        dy, dx = round(k * towards_y), round(k * towards_x)
        ahead = padded[reach + dy : reach + dy + rows, reach + dx : reach + dx + cols]
        above = ahead - k * pixel * math.tan(elevation) - height
        shadow = torch.maximum(shadow, (above / 0.6).clamp(0, 1))
    gy, gx = torch.gradient(height, spacing=pixel)
    # Walls and crown rims are steeper than a nadir view shows: their slope is limited.
    gx, gy = gx.clamp(-0.9, 0.9), gy.clamp(-0.9, 0.9)
    normal = torch.rsqrt(1 + gx**2 + gy**2)
    facing = (
        ((-gx * towards_x - gy * towards_y) * math.cos(elevation) + math.sin(elevation))
        * normal
        / math.sin(elevation)
    )
    direct = facing.clamp(0.05, 1.6) * (1 - 0.92 * shadow)
    around = nn.avg_pool2d(height[None, None], 9, 1, 4, count_include_pad=False)[0, 0]
    sky = torch.exp(-(around - height).clamp_min(0) / 9.0)
    return direct, sky


def build_ground(metres: float, pixel: float, generator: torch.Generator) -> Ground:
    """Return a square piece of countryside with a village.

    Args:
        metres: side of the square.
        pixel: size of a sub-pixel in metres.
        generator: source of randomness (CPU).
    """
    size = round(metres / pixel)
    ground = Ground(
        torch.zeros(len(MATERIALS), size, size),
        torch.zeros(size, size),
        pixel,
        torch.ones(size, size),
        generator,
    )
    axis = (torch.arange(size).float() + 0.5) * pixel
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    # All sizes below are for 960 m; a smaller scene is a smaller map of the same kinds of things.
    scale = max(0.45, min(1.0, metres / 960.0))
    warp = ground.noise(3.2, 0.25) * 9.0 * scale
    angle = ground.uniform(12, 24)
    tracks = _fields(ground, Frame(*rotated(x, y, angle), angle, pixel), scale)
    village = _village_mask(ground, x, y, metres, warp)
    wood = _wood(ground, x, y, metres, warp, village)
    angle += ground.uniform(18, 32)
    _village(ground, Frame(*rotated(x, y, angle), angle, pixel), village, scale)
    _roads(ground, x, y, metres, tracks & ~village & ~wood, scale, warp)
    _river(ground, x, y, metres, scale, warp)
    fine = ground.noise(1.1, 0.05)
    ground.brightness *= 1 + 0.045 * fine + 0.05 * ground.noise(2.6, 0.4)
    return ground


def _fields(ground: Ground, frame: Frame, scale: float) -> Tensor:
    """Lay parcels of crops over all the ground; return the mask of the field tracks between them."""
    blocks = split(frame.bounds(), 190 * scale, ground.uniform)
    tracks = torch.zeros(ground.shape, dtype=torch.bool)
    relief = {
        "patchy": ground.noise(2.4, 0.18),
        "grain": ground.noise(0.9, 0.04),
        "damp": ground.noise(3.0, 0.5),
    }
    kinds = ("green", "soil", "ripe", "grass", "light", "green", "flower", "young", "ripe", "grass")
    turn = int(ground.uniform(0, len(kinds)))
    for block in blocks:
        window = frame.window(block)
        if window is None:
            continue
        rim = frame.inside(block, window)
        tracks[window] |= (rim >= 0) & (rim < 2.0)
        for parcel in split(block, 62 * scale, ground.uniform, 3.4):
            turn += 1 + int(ground.uniform(0, 2.2))
            part = frame.window(parcel)
            if part is None:
                continue
            u0, v0, u1, v1 = parcel
            along = (frame.u if (u1 - u0) < (v1 - v0) else frame.v)[part]
            pieces = {name: plane[part] for name, plane in relief.items()}
            _parcel(ground.view(part), along, frame.inside(parcel, part), kinds[turn % len(kinds)], **pieces)
    return tracks


def _parcel(
    ground: Ground, along: Tensor, rim: Tensor, kind: str, patchy: Tensor, grain: Tensor, damp: Tensor
) -> None:
    """Lay one field: crop, straw and soil mixed by cover, ripeness, furrows and the soil's moisture."""
    inside = rim >= 0
    cover, dry = {
        "green": (0.86, 0.05),
        "young": (0.45, 0.05),
        "ripe": (0.84, 0.80),
        "grass": (0.93, 0.14),
        "soil": (0.06, 0.3),
        "light": (0.04, 0.5),
        "flower": (0.90, 0.0),
    }[kind]
    cover = cover + ground.uniform(-0.06, 0.06)
    dry = dry + ground.uniform(-0.05, 0.08)
    period = ground.uniform(5.0, 9.0)
    furrow = torch.sin(2 * math.pi * along / period + grain * 0.5)
    wheel = (torch.remainder(along, 24.0) < 1.6).float() * (
        0.35 if kind in ("green", "ripe", "flower") else 0.0
    )
    strength = {"grass": 0.02, "young": 0.12}.get(kind, 0.05)
    green = (cover + strength * furrow + 0.07 * patchy + 0.03 * grain - wheel).clamp(0, 1)
    straw = (dry + 0.09 * patchy - 0.04 * grain).clamp(0, 1)
    wet = torch.sigmoid(1.6 * damp + {"soil": 1.6, "light": -1.8}.get(kind, 0.0) + 0.4 * patchy)
    plant = {"grass": "grass", "flower": "flowering crop"}.get(kind, "green crop")
    ground.put(
        inside,
        {
            plant: green * (1 - straw),
            "dry straw": green * straw,
            "brown soil": (1 - green) * wet,
            "light soil": (1 - green) * (1 - wet),
        },
    )
    ground.put(inside & (rim < 1.1), {"grass": 0.7, "dry straw": 0.3})
    tone = ground.uniform(0.9, 1.1)
    ground.brightness[inside] = tone * (1 + 0.035 * furrow[inside])


def _village_mask(ground: Ground, x: Tensor, y: Tensor, metres: float, warp: Tensor) -> Tensor:
    """Return where the village stands: a rounded area in the north-east."""
    cx, cy = metres * ground.uniform(0.62, 0.70), metres * ground.uniform(0.30, 0.36)
    du, dv = rotated(x - cx, y - cy, 25)
    return (du / (0.31 * metres)) ** 2 + (dv / (0.23 * metres)) ** 2 + warp / (0.12 * metres) < 1


def _wood(ground: Ground, x: Tensor, y: Tensor, metres: float, warp: Tensor, village: Tensor) -> Tensor:
    """Plant a wood in the west, hedges' single trees everywhere else; return the wood's mask."""
    cx, cy = metres * ground.uniform(0.08, 0.16), metres * ground.uniform(0.25, 0.33)
    du, dv = rotated(x - cx, y - cy, -20)
    wood = (du / (0.20 * metres)) ** 2 + (dv / (0.27 * metres)) ** 2 + 2.4 * warp / (0.12 * metres) < 1
    wood &= ~village
    ground.put(wood, {"grass": 0.55, "brown soil": 0.45})
    stand = torch.sigmoid(2.5 * ground.noise(3.0, 0.3))
    tall, kind, crown = crowns(ground, wood.float() * 0.97, 7.0, (3.2, 5.2), (11, 18))
    conifer = torch.sigmoid((kind - stand) * 14)
    old = (0.22 * (kind * 7.3 % 1.0)).clamp(0, 1)
    ground.put(
        crown & wood,
        {"conifer": conifer * (1 - old), "broadleaf tree": (1 - conifer) * (1 - old), "grass": old},
        tall,
    )
    ground.brightness[crown & wood] = (0.82 + 0.42 * (kind * 13.7 % 1.0))[crown & wood]
    single, kind, crown = crowns(ground, (~wood & ~village).float() * 0.006, 8.0, (3.0, 5.0), (5, 8))
    ground.put(crown, {"broadleaf tree": 0.85 - 0.3 * kind, "grass": 0.15 + 0.3 * kind}, single)
    return wood


def _village(ground: Ground, frame: Frame, village: Tensor, scale: float) -> None:
    """Build the village: streets, gardens, houses with gable roofs, halls with flat ones, trees."""
    lush = torch.sigmoid(1.5 * ground.noise(2.0, 0.1))
    gardens = {"grass": 0.45 + 0.4 * lush, "brown soil": 0.35 - 0.25 * lush, "dry straw": 0.2 - 0.15 * lush}
    ground.put(village, gardens)
    blocked = torch.zeros_like(village)
    houses: list[tuple[Rectangle, str]] = []
    for block in split(frame.bounds(village), 58 * max(scale, 0.7), ground.uniform, 3.0):
        window = frame.window(block)
        if window is None:
            continue
        u0, v0, u1, v1 = block
        rim, built, here = frame.inside(block, window), village[window], ground.view(window)
        here.put(built & (rim >= 0) & (rim < 3.6), {"asphalt": 0.93, "concrete": 0.07})
        here.put(built & (rim >= 3.6) & (rim < 5.0), {"concrete": 0.75, "gravel": 0.25})
        blocked[window] |= built & (rim >= 0) & (rim < 5.0)
        yard = (u0 + 7, v0 + 7, u1 - 7, v1 - 7)
        draw = ground.uniform(0, 1)
        if draw < 0.20:
            inside = built & (rim >= 5.0)
            worn = lush[window]
            here.put(
                inside,
                {
                    "concrete": 0.35 + 0.3 * worn,
                    "asphalt": 0.55 - 0.3 * worn,
                    "grass": torch.full_like(worn, 0.1),
                },
            )
            blocked[window] |= inside
            houses += [
                (_inner(part, ground, 3.0, 6.0), "hall") for part in split(yard, 26, ground.uniform, 2.5)
            ]
        elif draw < 0.93:  # the rest stays a green
            houses += [
                (_inner(part, ground, 3.0, 7.5), "house") for part in split(yard, 16, ground.uniform, 2.6)
            ]
    tall, kind, crown = crowns(ground, (village & ~blocked).float() * 0.36, 8.0, (2.2, 4.2), (4, 8))
    crown &= village & ~blocked
    leaves = {"broadleaf tree": 0.55 + 0.35 * kind, "conifer": 0.3 - 0.3 * kind, "grass": 0.15 - 0.05 * kind}
    ground.put(crown, leaves, tall)
    for rectangle, kind_of in houses:
        window = frame.window(rectangle)
        if window is not None and (kind_of == "hall" or ground.uniform(0, 1) < 0.86):
            _building(ground.view(window), frame, rectangle, window, kind_of, village[window])


def _inner(part: Rectangle, ground: Ground, low: float, high: float) -> Rectangle:
    """Return a parcel's building, set back from its borders."""
    u0, v0, u1, v1 = part
    back = [0.6 * ground.uniform(low, high) for _ in range(4)]
    return u0 + back[0], v0 + back[1], u1 - back[2], v1 - back[3]


def _building(
    ground: Ground, frame: Frame, rectangle: Rectangle, window: Window, kind: str, village: Tensor
) -> None:
    """Put one building on the ground: its roof's material, pitch and height."""
    u0, v0, u1, v1 = rectangle
    width, depth = u1 - u0, v1 - v0
    inside = frame.inside(rectangle, window) >= 0
    if min(width, depth) < 5 or not bool(inside.any()) or not bool(village[inside].all()):
        return
    age = ground.uniform(0, 1)
    draw = ground.uniform(0, 1)
    height: Tensor | float = ground.uniform(6, 10)
    if kind == "hall" and draw < 0.4:
        mixture = {"metal sheet": 0.55 - 0.35 * age, "concrete": 0.45 + 0.35 * age}
    elif kind == "hall" and draw < 0.75:
        mixture = {"gravel": 0.5 + 0.3 * age, "slate": 0.5 - 0.3 * age}
    elif kind == "hall":
        mixture = {"slate": 0.7, "asphalt": 0.3 * age, "concrete": 0.3 * (1 - age)}
    else:
        if draw < 0.66:
            mixture = {"red tile": 0.92 - 0.35 * age, "slate": 0.05 + 0.25 * age, "gravel": 0.03 + 0.10 * age}
        elif draw < 0.9:
            mixture = {"slate": 0.85, "concrete": 0.15}
        else:
            mixture = {"metal sheet": 0.25, "concrete": 0.75}
        centred = frame.u[window] - 0.5 * (u0 + u1) if width < depth else frame.v[window] - 0.5 * (v0 + v1)
        height = ground.uniform(4.0, 6.0) + 0.7 * (0.5 * min(width, depth) - centred.abs()).clamp_min(0)
    ground.put(inside, mixture, height)
    ground.brightness[inside] = ground.uniform(0.85, 1.12)


def _roads(
    ground: Ground, x: Tensor, y: Tensor, metres: float, tracks: Tensor, scale: float, warp: Tensor
) -> None:
    """Lay gravel tracks between the fields and one main road with an avenue of trees."""
    ground.put(tracks, {"gravel": 0.7, "grass": 0.2, "light soil": 0.1})
    bend = metres * 0.055 * torch.sin(2 * math.pi * x / metres * 0.9 + ground.uniform(0, 3))
    line = y - (0.56 * metres + 0.12 * (x - 0.5 * metres) + bend) - 0.25 * warp
    distance = line.abs()
    avenue = ((distance > 8) & (distance < 12)).float() * 0.40
    tall, kind, crown = crowns(ground, avenue, 9.0, (2.6, 4.0), (6, 10))
    ground.put(crown & (distance > 6), {"broadleaf tree": 0.8, "grass": 0.2}, tall)
    ground.brightness[crown] = (0.9 + 0.25 * kind)[crown]
    ground.put(distance < 6.5, {"grass": 0.65, "gravel": 0.35})
    ground.put(distance < 4.6, {"asphalt": 0.95, "concrete": 0.05})
    ground.put(distance < 0.35, {"asphalt": 0.55, "concrete": 0.45})
    ground.brightness[distance < 6.5] = 1.0


def _river(ground: Ground, x: Tensor, y: Tensor, metres: float, scale: float, warp: Tensor) -> None:
    """Cut a meandering river with gravel bars and a belt of trees; the main road bridges it."""
    u, v = rotated(x - 0.5 * metres, y - 0.5 * metres, 38)
    phase = ground.uniform(0, 6)
    course = 0.20 * metres + 0.060 * metres * torch.sin(2 * math.pi * u / (0.62 * metres) + phase)
    course = course + 0.022 * metres * torch.sin(2 * math.pi * u / (0.23 * metres) + 2 * phase)
    distance = (v - course + 0.35 * warp).abs()
    half = (17 + 2.5 * torch.sin(2 * math.pi * u / (0.31 * metres))) * scale
    road = (ground.abundance[INDEX["asphalt"]] > 0.5) & (ground.height < 0.5)
    bank = (distance < half + 16 * scale) & ~road
    ground.put(bank, {"grass": 0.85, "brown soil": 0.15})
    belt = ((distance > half + 3) & (distance < half + 16 * scale)).float() * torch.sigmoid(
        2.0 * ground.noise(2.0, 0.12)
    )
    tall, kind, crown = crowns(ground, belt * 0.85, 7.5, (3.0, 4.8), (7, 13))
    ground.put(crown & bank, {"broadleaf tree": 0.9 - 0.2 * kind, "grass": 0.1 + 0.2 * kind}, tall)
    bar = (distance < half + 3) & ~road
    ground.put(bar, {"gravel": 0.6, "light soil": 0.2, "grass": 0.2})
    shallow = (1 - (half - distance) / (0.55 * half)).clamp(0, 1) * 0.6 + 0.25
    shallow = (shallow + 0.05 * ground.noise(2.5, 0.2)).clamp(0, 1)
    water = (distance < half) & ~road
    ground.put(water, {"turbid water": shallow, "water": 1 - shallow})
    ground.brightness[bank | water] = 1.0
    ground.height[road & (distance < half + 3)] = 2.5
