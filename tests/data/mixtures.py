"""Small mixtures over the fake store, used by several tests of this folder."""


def pairs(source, answer, agree, weight=7.5, **options):
    return {
        "source": "world",
        "recipe": "pairs",
        "weight": weight,
        "input": source,
        "output": answer,
        "agree": agree,
        **options,
    }


def mixture(packing="aligned", seq_len=64, **changes):
    """Four tokens a picture, sixteen pictures a sentence: sentences of 66 and 6 tokens."""
    return {
        "seq_len": seq_len,
        "packing": packing,
        "seed": 0,
        "period": 64,
        "held_out_per_mille": 100,
        "shuffle_block": 16,
        "sources": {"world": {}},
        "entries": {
            "segmentation": pairs("image", "segmentation", "view"),
            "depth": pairs("image", "depth", "none"),
            "masked": pairs("masked", "image", "view"),
            "kind": pairs("gray", "image", "label", pictures=8),
            "clip": {"source": "world", "recipe": "video", "weight": 20, "strides": [1, 2], "reverse": True},
            "single": {"source": "world", "recipe": "single", "weight": 5},
        },
        **changes,
    }


STAGES = [{"from_window": 0}, {"from_window": 23, "weights": {"clip": 0, "depth": 40}}, {"from_window": 60}]
