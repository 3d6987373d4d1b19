"""The benchmark of a remote store runs, small, where a server of S3 is installed: pip install -e '.[bench]'."""

import pytest

pytest.importorskip("moto")
pytest.importorskip("s3fs")

from benchmarks.remote import Options, run


@pytest.mark.slow
def test_a_bucket_is_read_at_the_pace_of_training():
    found = run(Options(pictures=640, shard_pictures=64, shuffle_block=128, seconds=1.0, pace=1e5, latency=0.01))
    assert found["tars"] == 10 and found["ours"]["at_pace"]["tokens"] > 0
    assert found["ours"]["at_pace"]["requests_per_second"] > 0
    assert found["ours"]["unpaced"]["bytes_in_cache_at_the_end"] <= found["cache_bytes"]
    assert found["limit"]["at_pace"]["bytes_fetched"] == 0
