"""Profiles: seconds and batch sizes in, the minimum, optimum and maximum of every tensor axis out."""

from nemotrt.profiles.axes import AxisRange, Geometry, axis_ranges, subsampled_frames
from nemotrt.profiles.profile import CountRange, Profile, SecondsRange, load_profile, preset_names

__all__ = [
    "AxisRange",
    "CountRange",
    "Geometry",
    "Profile",
    "SecondsRange",
    "axis_ranges",
    "load_profile",
    "preset_names",
    "subsampled_frames",
]
