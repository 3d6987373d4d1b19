"""The embedded data: a procedural world with exact annotations, rendered on the CPU, the same on every machine.

scene.py     what is in a scene or clip: a function of (seed, split, index)
render.py    ray casting: a scene -> surfaces -> photo
annotate.py  surfaces -> segmentation, depth, normals, edges, boxes, relit, degraded; the latents of a sentence
source.py    the world as a source of items for the token store
"""

from lvm.world.source import WorldConfig, WorldSource

__all__ = ["WorldConfig", "WorldSource"]
