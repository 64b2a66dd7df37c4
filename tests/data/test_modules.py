"""Prompts as the model reads them, batches as the trainer asks for them."""

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fakes import longrope, make_llama
from toy_task import SameIds

from transformer2 import tasks
from transformer2.data import ExpertDataModule, FewShotDataModule, PromptLoader, UnseenTaskDataModule, collate
from transformer2.errors import ConfigError, DataError, UserError
from transformer2.policy import load_tokenizer
from transformer2.types import Example

EXAMPLES = [Example(f"t/{i}", ({"role": "user", "content": "x" * (i + 1)},), str(i)) for i in range(10)]


def test_the_budget_of_the_run_decides_what_fits(tmp_path, some_rows):
    base = str(make_llama(tmp_path / "short", context=900))
    ExpertDataModule("gsm8k", base, str(some_rows), max_new_tokens=8, test_limit=50).setup("test")
    with pytest.raises(DataError, match="no room for 880 new"):
        ExpertDataModule("gsm8k", base, str(some_rows), max_new_tokens=880, test_limit=50).setup("test")


def test_a_row_stays_within_the_frequencies_that_longrope_begins_with(tmp_path):
    """Beyond them a row has other numbers in a batch with a longer row than alone."""
    base = make_llama(tmp_path / "long", context=4096, rope=longrope(128))
    task = {"task": "toy_task.FirstLetter", "base": str(base)}
    ExpertDataModule(**task, max_new_tokens=8).setup("validate")
    with pytest.raises(DataError, match="no room for 100 new tokens in a context of 128"):
        ExpertDataModule(**task, max_new_tokens=100).setup("validate")


def test_collate_pads_on_the_left():
    batch = collate(EXAMPLES[:2], [[5, 6, 7], [8]], pad_id=4)
    assert batch.input_ids_BP.tolist() == [[5, 6, 7], [4, 4, 8]]
    assert batch.attention_mask_BP.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert [e.id for e in batch.repeat(2).examples] == ["t/0", "t/0", "t/1", "t/1"]


def loader(seed=0, **kwargs):
    return PromptLoader(EXAMPLES, [[i] for i in range(10)], 0, 3, shuffle_seed=seed, **kwargs)


def drawn(batches):
    return [e.id for batch in batches for e in batch.examples]


def test_epochs_shuffle_again_and_repeat_with_the_seed():
    a, b = loader(), loader()
    first, second = drawn(a), drawn(a)
    assert len(first) == 9 == len(set(first))
    assert first != second
    assert [first, second] == [drawn(b), drawn(b)]
    assert drawn(loader(seed=1)) != first


def test_a_loader_resumes_where_it_was():
    uncut = loader()
    expected = drawn(uncut) + drawn(uncut)
    cut = loader()
    batches = iter(cut)
    before = drawn([next(batches), next(batches)])
    resumed = loader()
    resumed.load_state_dict(cut.state_dict())
    assert before + drawn(resumed) + drawn(resumed) == expected


def test_ranks_share_each_batch():
    one = list(loader())
    two = [list(loader(rank=r, world_size=2)) for r in (0, 1)]
    for whole, *parts in zip(one, *two, strict=True):
        assert sorted(e.id for e in whole.examples) == sorted(e.id for p in parts for e in p.examples)
        for part in parts:
            assert [whole.examples[row].id for row in part.row_ids] == [e.id for e in part.examples]
            assert part.repeat(2).row_ids == tuple(2 * row + copy for row in part.row_ids for copy in (0, 1))


@pytest.mark.parametrize("batch_size", [3, 4, 5, 10, 20])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_rank_has_a_row_of_every_batch_that_is_scored(batch_size, world_size):
    ids = [[i] for i in range(10)]
    ranks = [PromptLoader(EXAMPLES, ids, 0, batch_size, rank=r, world_size=world_size) for r in range(world_size)]
    batches = [list(loader) for loader in ranks]
    assert {len(b) for b in batches} == {len(loader) for loader in ranks} == {len(ranks[0])}
    assert all(len(batch) for rank in batches for batch in rank)
    assert sorted(name for rank in batches for name in drawn(rank)) == sorted(e.id for e in EXAMPLES)


def test_fewer_prompts_than_processes_are_refused():
    with pytest.raises(ConfigError, match="10 prompts are too few for 11 processes"):
        PromptLoader(EXAMPLES, [[0]] * 10, 0, 4, rank=0, world_size=11)


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ConfigError, match="batch_size 11"):
        PromptLoader(EXAMPLES, [[0]] * 10, 0, 11, shuffle_seed=0)


def test_fit_cannot_reach_the_test_split(llama_folder, some_rows):
    data = ExpertDataModule("gsm8k", str(llama_folder), str(some_rows), batch_size=4, validation_limit=8)
    data.setup("fit")
    assert len(data.val_dataloader()) == 1
    with pytest.raises(DataError, match="'test'"):
        data.test_dataloader()


def test_prompts_that_do_not_fit_are_counted_and_named(tmp_path, some_rows):
    base = str(make_llama(tmp_path / "short", context=900))
    with pytest.raises(DataError, match=r"prompts of gsm8k/test .*gsm8k/test/\d+.*drop_long_prompts"):
        ExpertDataModule("gsm8k", base, str(some_rows)).setup("test")
    dropping = ExpertDataModule("gsm8k", base, str(some_rows), drop_long_prompts=True)
    dropping.setup("test")
    batch = next(iter(dropping.test_dataloader()))
    assert batch.input_ids_BP.shape[1] <= 900 - 512
    assert torch.equal(batch.attention_mask_BP[:, -1], torch.ones(len(batch), dtype=torch.long))


@pytest.mark.parametrize(("protocol", "source"), [("clean", "train"), ("paper", "test")])
def test_shots_come_from_where_the_protocol_says_and_are_not_scored(llama_folder, some_rows, protocol, source):
    rows = tasks.get("arc_challenge").examples("test", str(some_rows))
    chosen = []
    for seed in (0, 0, 1):
        data = UnseenTaskDataModule(
            "arc_challenge", str(llama_folder), str(some_rows), few_shot=8, protocol=protocol, seed=seed
        )
        data.setup("predict")
        shots, scored = [e.id for e in data.shots().examples], [e.id for e in data.scored()]
        assert len(shots) == 8 and all(id.startswith(f"arc_challenge/{source}/") for id in shots)
        assert scored == [e.id for e in rows if e.id not in shots]  # in order, and all the others
        chosen.append(shots)
    assert chosen[0] == chosen[1] != chosen[2]


def test_unseen_prompts_that_do_not_fit_are_counted_and_named_too(tmp_path, some_rows):
    base = str(make_llama(tmp_path / "short", context=800))
    with pytest.raises(DataError, match=r"prompts of arc_challenge/train .*arc_challenge/train/\d+.*drop_long_prompts"):
        UnseenTaskDataModule("arc_challenge", base, str(some_rows)).setup("predict")
    data = UnseenTaskDataModule("arc_challenge", base, str(some_rows), drop_long_prompts=True, max_new_tokens=256)
    data.setup("predict")
    assert data.shots().input_ids_BP.shape[1] <= 800 - 256


def test_options_reach_the_task_and_typos_say_the_nearest():
    assert ExpertDataModule("gsm8k", task_options={"revision": None}).task.revision is None
    for make in (ExpertDataModule, UnseenTaskDataModule):
        with pytest.raises(ConfigError, match="no option 'revison'; did you mean 'revision'"):
            make("gsm8k", task_options={"revison": None})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"task_options": {"splits": ["train", "validation"]}}, "splits has no test split, only train, validation"),
        ({"task_options": {"splits": ["train", "test"]}}, "has no validation split"),
        ({"task_options": {"test": 0}}, "splits/test holds no prompt"),
        ({"task_options": {"validation": 0}}, "splits/validation holds no prompt"),
        ({"data_dir": "rows"}, r"splits/test cannot be read .*rows/test\.txt.*check data\.data_dir"),
        ({"test_limit": 0}, "data.test_limit must be an integer >= 1 or null, not 0"),
        ({"test_limit": -1}, "data.test_limit must be an integer >= 1"),
        ({"validation_limit": 0}, "data.validation_limit must be an integer >= 1"),
    ],
)
def test_what_would_be_found_after_training_is_found_before(llama_folder, tmp_path, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "validation"):
        (tmp_path / "rows").mkdir(exist_ok=True)
        (tmp_path / "rows" / f"{split}.txt").write_text("")
    with pytest.raises(UserError, match=said) as e:
        ExpertDataModule("toy_task.Splits", str(llama_folder), batch_size=4, **options).setup("fit")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("make", [ExpertDataModule, partial(FewShotDataModule, few_shot=2)])
def test_a_share_of_the_scored_batches_that_is_none_is_found_before_training(llama_folder, make):
    data = make("toy_task.Splits", str(llama_folder), batch_size=4)
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, limit_test_batches=0.01, datamodule=None)
    data.setup("fit")  # of an evaluator inside `fit`, which scores all of its rows
    data.trainer.datamodule = data
    with pytest.raises(ConfigError, match=r"limit_test_batches 0.01 leaves nothing to score"):
        data.setup("fit")


def test_too_few_scored_rows_for_the_processes_are_found_before_training(llama_folder):
    data = ExpertDataModule("toy_task.Splits", str(llama_folder), batch_size=4, test_limit=1)
    data.trainer = SimpleNamespace(global_rank=0, world_size=2)
    with pytest.raises(ConfigError, match="1 prompts are too few for 2 processes"):
        data.setup("fit")


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_positions_are_those_of_the_split_on_every_rank(world_size):
    for seed in (None, 0):
        ranks = [loader(seed, rank=r, world_size=world_size) for r in range(world_size)]
        for batch in [batch for rank in ranks for batch in rank]:
            assert [EXAMPLES[p].id for p in batch.positions] == [e.id for e in batch.examples]
            assert batch.repeat(2).positions == tuple(p for p in batch.positions for _ in (0, 1))


class Shared(SameIds):
    """Its test rows ask what its first train rows ask, under other ids."""

    def examples(self, split, data_dir=None):
        rows = [replace(e, id=f"{split}/{i}") for i, e in enumerate(super().examples(split, data_dir))]
        asked = super().examples("train", data_dir)
        return [replace(e, messages=a.messages) for e, a in zip(rows, asked, strict=False)] if split == "test" else rows


def test_questions_that_are_trained_on_and_scored_are_named(llama_folder):
    name, base = f"{__name__}.Shared", str(llama_folder)
    data = ExpertDataModule(name, base, batch_size=4)
    with pytest.warns(
        UserWarning, match=r"16 of 16 questions of same_ids/test are in train too \(first: row 0 is row 0"
    ):
        data.setup("fit")
    unseen = UnseenTaskDataModule(name, base, few_shot=48)
    with pytest.warns(
        UserWarning, match=r"\d+ rows of same_ids/test ask what a few-shot row asks; they are not scored"
    ):
        unseen.setup("predict")
    shots, scored = unseen.shots().examples, unseen.scored()
    assert scored and not {e.question for e in shots} & {e.question for e in scored}
    with pytest.raises(DataError, match="there is none to score"):
        UnseenTaskDataModule(name, base, few_shot=63).setup("predict")


class Twice(SameIds):
    """A task whose rows ask everything twice."""

    def examples(self, split, data_dir=None):
        return super().examples(split)[:4] * 2


def test_questions_that_repeat_are_counted(llama_folder):
    with pytest.warns(UserWarning, match=r"4 of 8 questions of same_ids/test repeat an earlier one; each counts"):
        ExpertDataModule(f"{__name__}.Twice", str(llama_folder)).setup("test")


class Foreign(SameIds):
    """A task in words that the embedded model has no token for."""

    words = "Wort"

    def examples(self, split, data_dir=None):
        rows = enumerate(super().examples(split))
        return [replace(e, messages=({"role": "user", "content": f"{self.words}{'e' * i}?"},)) for i, e in rows]


def test_words_without_a_token_are_not_taken_for_a_template_without_the_question():
    with pytest.warns(UserWarning, match="15 of 16 questions .* repeat an earlier one to 'tiny', which has no token"):
        ExpertDataModule(f"{__name__}.Foreign", "tiny").setup("test")


@pytest.mark.parametrize("words", ["Wort", "1 + 2"])
def test_a_template_without_the_question_is_refused_whatever_tokens_are_lacking(words):
    data = ExpertDataModule(f"{__name__}.Foreign", "tiny")
    data.tokenizer, data.task.words = load_tokenizer("tiny"), words
    data.tokenizer.chat_template = "{{ bos_token }}user : answer :"
    with pytest.raises(DataError, match="leaves the question out") if words != "Wort" else nullcontext():
        data.setup("test")


@pytest.mark.parametrize("protocol", ["clean", "paper"])
def test_shots_are_disjoint_from_scored_rows_by_position(llama_folder, protocol):
    data = UnseenTaskDataModule("toy_task.SameIds", str(llama_folder), few_shot=4, protocol=protocol)
    with pytest.warns(UserWarning, match="repeat an earlier id"):
        data.setup("predict")
    assert len(data.shots()) == 4 and len(data.scored()) == (16 if protocol == "clean" else 12)
    assert not {e.question for e in data.shots().examples} & {e.question for e in data.scored()}


def test_a_home_folder_means_the_same_to_every_task(llama_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "größe und mehr").mkdir()
    for split in ("train", "validation", "test"):
        (tmp_path / "größe und mehr" / f"{split}.txt").write_text("")
    ExpertDataModule("toy_task.Splits", str(llama_folder), "~/größe und mehr", batch_size=4).setup("fit")


def test_unknown_tasks_say_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'gsm8k'"):
        ExpertDataModule("gsm8")


def test_the_task_of_the_documentation_runs(tmp_path, monkeypatch, llama_folder):
    page = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text()
    (tmp_path / "mytasks.py").write_text(page.partition("```python\n")[2].partition("```")[0])
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.txt").write_text(f"{split} stone word")
    monkeypatch.syspath_prepend(str(tmp_path))
    data = ExpertDataModule("mytasks.Reverse", str(llama_folder), data_dir=str(tmp_path), batch_size=3)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    word = next(e for e in batch.examples if e.answer == "enots")
    assert data.task.verify(word, " enots\n").reward == 1.0
    assert data.task.verify(word, "stone").reward == -1.0
