"""The suites of `lvm evaluate`, one file each: what is asked, how an answer is judged, what was published."""

SUITES = (
    "perplexity",
    "context",
    "pascal5i",
    "depth",
    "colorization",
    "detection",
    "keypoints",
    "video",
    "puzzles",
    "failures",
)
