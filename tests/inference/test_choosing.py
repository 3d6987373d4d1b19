"""Choosing among candidates: every rule against a plain computation, and what is blank."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from tiny_prompter import TOKENS, small_model, small_vqgan

from lvm.evaluation.measures import colours_of
from lvm.inference import choosing, scoring
from lvm.inference.choosing import RULES, answer_log_probs, check_rule, differences, one_colour, score_candidates
from lvm.inference.prompter import Prompter
from lvm.inference.rollout import Prompt
from lvm.inference.sampling import Sampling
from lvm.runtime import UserError
from lvm.sources.world import WorldConfig, WorldSource
from tokenizer import VQGAN, BulkEncoder


def small_prompter(**change) -> Prompter:
    vq = small_vqgan()
    return Prompter(small_model(vq, **change), vq)


@pytest.fixture(scope="module")
def prompter():
    return small_prompter()


def ask(pictures: int, num_pictures: int = 1, tuple_size: int = 2) -> Prompt:
    return Prompt(np.random.default_rng(pictures).integers(0, 32, (pictures, TOKENS)), num_pictures, tuple_size)


def draw(prompter: Prompter, prompt: Prompt, num_candidates: int = 3):
    [(_, found)] = prompter.continuations([prompt], num_candidates, Sampling(), seed=2)
    pictures = prompter.decode(found.tokens.reshape(-1, TOKENS))
    return found, pictures.reshape(*found.tokens.shape[:2], *pictures.shape[1:])


def plain(prompter: Prompter, shown, answer) -> float:
    """Mean log-probability of the codes of `answer`, from full logits."""
    config = prompter.model.config
    tokens = torch.tensor([*([config.bos] if config.prompt_bos else []), *np.ravel(shown), *np.ravel(answer)])
    with torch.no_grad():
        log_probs = prompter.model(tokens[None, :-1])[0].log_softmax(-1)
    return float(log_probs.gather(1, tokens[1:, None])[-answer.size :].mean())


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize(
    ("shown", "following", "tuple_size"), [(5, 1, 2), (1, 1, 1), (3, 3, 1), (3, 6, 1), (9, 1, 2), (9, 3, 2)]
)
def test_after_its_own_prompt_an_answer_is_as_likely_as_when_it_was_drawn(bos, shown, following, tuple_size):
    prompter = small_prompter(prompt_bos=bos)
    prompt = ask(shown, following, tuple_size)
    found, _ = draw(prompter, prompt)
    np.testing.assert_allclose(answer_log_probs(prompter, prompt, found.tokens), found.log_probs, atol=2e-4)


def test_the_scores_of_an_analogy_are_those_of_a_plain_computation(prompter):
    prompt = ask(5)
    found, pictures = draw(prompter, prompt)
    scores = score_candidates(prompter, prompt, found, pictures)
    a, b, c, d, query = prompt.codes
    for number, answer in enumerate(found.tokens):
        right = plain(prompter, prompt.codes, answer)
        wrong = plain(prompter, [a, d, c, b, query], answer)
        others = [np.abs(pictures[number] - other.astype(float)).mean() for other in np.delete(pictures, number, 0)]
        expected = [right, right - plain(prompter, [query], answer), right - wrong, -np.mean(others)]
        given = [scores.by_rule[rule][number] for rule in RULES]
        np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-4)
    assert list(scores.by_rule) == list(RULES) and all(v.dtype == np.float32 for v in scores.by_rule.values())


def test_a_gain_of_a_sequence_is_over_its_last_picture_alone(prompter):
    prompt = ask(3, num_pictures=2, tuple_size=1)
    found, pictures = draw(prompter, prompt)
    scores = score_candidates(prompter, prompt, found, pictures)
    expected = [plain(prompter, prompt.codes, x) - plain(prompter, prompt.codes[-1:], x) for x in found.tokens]
    np.testing.assert_allclose(scores.by_rule["gain_over_none"], expected, atol=1e-4)


def test_only_the_pairs_that_were_seen_are_mixed_up(prompter):
    long, seen = ask(9), Prompt(ask(9).codes[4:], 1, 2)  # of nine pictures the window holds two pairs and the query
    found, pictures = draw(prompter, long)
    of_long = score_candidates(prompter, long, found, pictures)
    of_seen = score_candidates(prompter, seen, found, pictures)
    assert all(np.array_equal(of_long.by_rule[rule], of_seen.by_rule[rule]) for rule in RULES)


def test_a_model_that_ignores_its_prompt_gains_nothing_by_it():
    prompter = small_prompter()
    for block in prompter.model.layers:
        block.attention.o.weight.data.zero_()  # a code then depends on the one before it alone
    prompt = ask(5)
    scores = score_candidates(prompter, prompt, *draw(prompter, prompt))
    assert scores.by_rule["log_prob"].std() > 1e-2
    assert np.abs(scores.by_rule["gain_over_none"]).max() < 1e-4
    assert np.abs(scores.by_rule["gain_over_wrong"]).max() < 1e-4


def test_scores_do_not_depend_on_the_batch(prompter, monkeypatch):
    prompt = ask(5)
    found, pictures = draw(prompter, prompt, 4)
    together = score_candidates(prompter, prompt, found, pictures)
    again = score_candidates(prompter, prompt, found, pictures)
    monkeypatch.setattr(scoring, "worth_sharing", lambda group, sequences: False)
    monkeypatch.setattr(choosing, "score_answers", partial(scoring.score_answers, tokens_at_once=1))
    alone = score_candidates(prompter, prompt, found, pictures)
    for rule in RULES:
        assert np.array_equal(together.by_rule[rule], again.by_rule[rule])
        np.testing.assert_allclose(alone.by_rule[rule], together.by_rule[rule], atol=1e-5)


def test_the_candidate_in_the_middle_agrees_most():
    pictures = np.stack([np.full((4, 4, 3), value, np.uint8) for value in (0, 200, 90)])
    np.testing.assert_allclose(differences(pictures), [145, 155, 100], rtol=1e-6)


def test_a_record_is_plain_json_and_names_a_random_choice(prompter):
    prompt = ask(3, tuple_size=1)
    scores = score_candidates(prompter, prompt, *draw(prompter, prompt))
    record = json.loads(json.dumps(scores.record()))
    assert record["random"] == 0 and record["one_colour"] == scores.one_colour.tolist()
    assert record["best"] == {rule: int(np.argmax(record["by_rule"][rule])) for rule in record["by_rule"]}
    assert record["left_out"] == {"gain_over_wrong": "a sequence has no pairs"}


@pytest.mark.parametrize(
    ("prompt", "num_candidates", "rule", "why"),
    [
        (ask(1), 3, "gain_over_none", "nothing stands before the query"),
        (ask(1, tuple_size=1), 3, "gain_over_none", "nothing stands before the query"),
        (ask(4, tuple_size=1), 3, "gain_over_wrong", "a sequence has no pairs"),
        (ask(3), 3, "gain_over_wrong", "1 pairs before the query cannot be mixed up; give at least 2"),
        (Prompt(np.zeros((5, TOKENS), np.int64), 1, 2), 3, "gain_over_wrong", "all pairs have the same answer"),
        (ask(5), 2, "agreement", "2 candidates are all equally near to each other; draw at least 3"),
    ],
)
def test_a_rule_without_meaning_is_left_out_and_refused_where_it_is_asked_for(
    prompter, prompt, num_candidates, rule, why
):
    scores = score_candidates(prompter, prompt, *draw(prompter, prompt, num_candidates))
    assert rule not in scores.by_rule and scores.left_out[rule] == why
    with pytest.raises(UserError, match=f"cannot choose by {rule}: {why}"):
        scores.best(rule)
    with pytest.raises(UserError, match=f"cannot choose by {rule}: {why}"):
        check_rule(rule, prompt, num_candidates, prompter.pictures_per_window)


def test_only_the_rules_asked_for_are_scored(prompter):
    prompt = ask(5)
    scores = score_candidates(prompter, prompt, *draw(prompter, prompt), rules=("log_prob",))
    assert list(scores.by_rule) == ["log_prob"]
    check_rule("agreement", prompt, 3, prompter.pictures_per_window)
    with pytest.raises(UserError, match="cannot choose by agreement: it was not asked for; use one of log_prob"):
        scores.best("agreement")


def test_unknown_rules_and_foreign_pictures_are_refused(prompter):
    prompt = ask(5)
    found, pictures = draw(prompter, prompt)
    with pytest.raises(UserError, match="there is no rule 'beauty' to choose by; use one of log_prob"):
        score_candidates(prompter, prompt, found, pictures, rules=("beauty",))
    with pytest.raises(UserError, match="are not those of 3 candidates of 1 pictures"):
        score_candidates(prompter, prompt, found, pictures[:, 0])


# What is blank: through the shipped tokenizer, as answers come.


@pytest.fixture(scope="module")
def drawn():
    """Every channel of scenes with few things, whose drawings are the sparsest."""
    world = WorldSource(WorldConfig(split="test", num_scenes=16, num_clips=0, num_things=(1, 2)))
    scenes = [world.draw(scene, [scene], 48) for scene in range(16)]
    return [{**steady, **latent} for steady, latent in scenes]


@pytest.fixture(scope="module")
def decoded():
    bulk = BulkEncoder(VQGAN.from_pretrained("world-48px-f8-1024"))
    return lambda pictures: bulk.decode(bulk.encode(pictures))


def test_blanks_are_of_one_colour_after_the_tokenizer_too(drawn, decoded):
    grounds = {tuple(colours_of(scene[name])[0]) for scene in drawn for name in ("segmentation", "edge", "normal")}
    blanks = np.stack([np.full((48, 48, 3), colour, np.uint8) for colour in sorted(grounds)])
    assert len(blanks) > 8 and one_colour(blanks).all() and one_colour(decoded(blanks)).all()


def test_pictures_and_thin_drawings_are_not_of_one_colour(drawn, decoded):
    pictures = np.stack([picture for scene in drawn for picture in scene.values()])
    assert not one_colour(pictures).any() and not one_colour(decoded(pictures)).any()


def test_one_blank_picture_makes_a_blank_rollout(prompter):
    prompt = ask(3, num_pictures=2, tuple_size=1)
    found, pictures = draw(prompter, prompt)
    textured = np.random.default_rng(0).integers(0, 256, pictures.shape, dtype=np.uint8)
    textured[1, 1] = 70
    assert score_candidates(prompter, prompt, found, textured, ()).one_colour.tolist() == [False, True, False]
