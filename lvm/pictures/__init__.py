"""Annotations as pictures and back: one module a kind, `draw(...)` beside `read(...)`; derived channels; safe decoding.

A picture is uint8 [y, x, 3], RGB. `draw` and `read` are inverses up to the stated bound, before any tokenizer.

    segmentation  exact for classes of distinct colours
    instances     exact up to the instances' numbers, which go by size
    boxes         outlined: exact where lines stand apart, or cross at a known width; filled: where none overlap
    keypoints     within half a pixel, of dots that stand apart
    skeletons     within a pixel, of dots that no other covers; one person or several
    depth         half a gray level, of inverse depth or of the logarithm of metres
    normals       0.7 degrees
    edges         exact for lines that are there or not
    derive        gray and degraded pictures: one way alone
"""
