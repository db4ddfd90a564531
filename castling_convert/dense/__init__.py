"""Models that answer for every place of an image: a backbone of timm's and a light head on its feature maps.

They are in timm's registry as `segmenter` and `detector` (see `timm_entry`), so that they are made, saved and loaded as
timm's own. A model of somebody else's needs none of this: see docs/dense.md.
"""
