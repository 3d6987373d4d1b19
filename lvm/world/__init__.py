"""The embedded data: a procedural world with exact annotations, rendered on the CPU, the same on every machine.

    scene.py     what is in a scene or clip: a function of a random generator
    render.py    ray casting: a scene -> surfaces -> photo
    annotate.py  surfaces -> segmentation, depth, normals, edges, boxes, relit, degraded; the latents of a sentence
    objects.py   a scene about one thing of a named class
    assembled.py objects of several bodies; turntables.py shows one from all sides
    puzzles.py   matrices of nine panels, their rules and the choices; puzzle_pictures.py draws them

`lvm.sources.world` makes items of it.
"""
