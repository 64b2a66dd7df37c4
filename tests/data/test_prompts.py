"""One way to build a prompt, for the chat templates of four model families and for tokenizers without one."""

import ast
import shutil
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes import byte_tokenizer, make_llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from toy_task import FirstLetter
from transformers import PreTrainedTokenizerFast

import transformer2
from transformer2.adaptation import dispatch
from transformer2.adaptive.chat import Chat
from transformer2.adaptive.request import prompt_ids
from transformer2.callbacks.evaluator import AdaptationEvaluator
from transformer2.data import ExpertDataModule, UnseenTaskDataModule, collate, render
from transformer2.data.prompts import ChatTemplate, open_turn_end
from transformer2.errors import ConfigError, DataError, UserError
from transformer2.policy import load_tokenizer
from transformer2.types import Example

SYSTEM, QUESTION = "Be brief.", "How many legs has a spider?"
EXAMPLE = Example("t/0", ({"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}), "8")
BARE = Example("t/1", ({"role": "user", "content": QUESTION},), "8")

LLAMA = (
    "{% for m in messages %}{{ (bos_token if loop.first else '') + '<|start_header_id|>' + m['role'] "
    "+ '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# v0.3 puts the system text before the last user message and insists on alternating roles.
MISTRAL = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set turns = messages[1:] %}"
    "{% else %}{% set turns = messages %}{% endif %}{{ bos_token }}{% for m in turns %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}{% if loop.last and system is defined %}{{ '[INST] ' + system + '\n\n' + m['content'] "
    "+ '[/INST]' }}{% else %}{{ '[INST] ' + m['content'] + '[/INST]' }}{% endif %}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
QWEN = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' "
    "+ m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
FAMILIES = {  # template, BOS, EOS, other special tokens, the whole prompt
    "llama": (
        *(LLAMA, "<|begin_of_text|>", "<|eot_id|>", ["<|start_header_id|>", "<|end_header_id|>"]),
        f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{SYSTEM}<|eot_id|>"
        f"<|start_header_id|>user<|end_header_id|>\n\n{QUESTION}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "mistral": (MISTRAL, "<s>", "</s>", ["[INST]", "[/INST]"], f"<s>[INST] {SYSTEM}\n\n{QUESTION}[/INST]"),
    "qwen": (
        *(QWEN, None, "<|im_end|>", ["<|im_start|>"]),
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n",
    ),
    "gemma": (
        *(GEMMA, "<bos>", "<eos>", ["<start_of_turn>", "<end_of_turn>"]),
        f"<bos><start_of_turn>user\n{SYSTEM}\n\n{QUESTION}<end_of_turn>\n<start_of_turn>model\n",
    ),
}


def tokenizer_of(template, bos, eos, special, ends=False):
    """A byte tokenizer that, like the family's own, puts a BOS before every text (and, with `ends`, an EOS after)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [w for w in (bos, eos) if w]
    vocab = {token: i for i, token in enumerate([*words, *special, *alphabet])}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    single = f"{bos or ''} $A {eos if ends else ''}".strip()
    inner.post_processor = processors.TemplateProcessing(single=single, special_tokens=[(w, vocab[w]) for w in words])
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=bos, eos_token=eos)
    fast.add_special_tokens({"additional_special_tokens": special})
    fast.chat_template = template
    return fast


@pytest.fixture(params=FAMILIES)
def family(request):
    *parts, expected = FAMILIES[request.param]
    return tokenizer_of(*parts), expected


def test_the_prompt_is_the_family_s_own_with_one_bos(family):
    tokenizer, expected = family
    ids = render(tokenizer, EXAMPLE)
    assert tokenizer.decode(ids) == expected
    if tokenizer.bos_token_id is not None:
        assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1
        doubled = tokenizer(expected)["input_ids"]
        assert doubled.count(tokenizer.bos_token_id) == 2, "the tokenizer would add its own"


def test_special_tokens_are_single_ids(family):
    tokenizer, expected = family
    ids, specials = render(tokenizer, EXAMPLE), set(tokenizer.all_special_ids)
    assert sum(i in specials for i in ids) == sum(expected.count(t) for t in tokenizer.all_special_tokens) > 0


def test_without_a_system_message_none_is_made_up_by_us(family):
    tokenizer, _ = family
    direct = tokenizer.apply_chat_template([dict(m) for m in BARE.messages], tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(render(tokenizer, BARE)) == direct and SYSTEM not in direct


@pytest.mark.parametrize("question", [QUESTION, f"{QUESTION} {SYSTEM}"], ids=["", "said twice"])
def test_a_template_that_drops_the_system_role_gets_it_with_the_question(question):
    template, *rest, _ = FAMILIES["llama"]
    example = replace(EXAMPLE, messages=(EXAMPLE.messages[0], {"role": "user", "content": question}))
    kept = (tokenizer := tokenizer_of(template, *rest)).decode(render(tokenizer, example))
    assert kept.count(SYSTEM) == 1 + question.count(SYSTEM) and "system" in kept
    silent = template.replace("for m in messages", "for m in messages if m['role'] != 'system'")
    text = (tokenizer := tokenizer_of(silent, *rest)).decode(render(tokenizer, example))
    assert f"{SYSTEM}\n\n{question}<|eot_id|>" in text and "system" not in text


def test_a_template_that_refuses_a_plain_question_is_a_user_error():
    template, *rest, _ = FAMILIES["llama"]
    for fault, said in {"raise_exception('no')": "no", "1 / 0": "division by zero", "'a' + 1": "can only .*"}.items():
        tokenizer = tokenizer_of(f"{{{{ {fault} }}}}{template}", *rest)
        for example in (EXAMPLE, BARE):
            with pytest.raises(DataError, match=rf"refuses a prompt \({said}\)"):
                render(tokenizer, example)
        # One that fails on an exchange alone says nothing of where an answer ends.
        only = f"{{% for m in messages if m.role == 'assistant' %}}{{{{ {fault} }}}}{{% endfor %}}"
        assert open_turn_end(tokenizer_of(only + template, *rest), [0]) is None


@pytest.mark.parametrize("template", [" ", "{{ '' }}", "hello"])
def test_a_template_that_leaves_the_question_out_is_a_user_error(template, tmp_path):
    folder = make_llama(tmp_path / "bare")
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(DataError, match="leaves the question out"):
        ExpertDataModule("toy_task.FirstLetter", str(folder)).setup("test")


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("bos", ["<s>", None])
def test_without_a_template_the_contents_are_read_after_one_bos(bos, ends):
    tokenizer = tokenizer_of(None, bos, "</s>", [], ends)
    assert tokenizer.decode(render(tokenizer, EXAMPLE)) == f"{bos or ''}{SYSTEM}\n\n{QUESTION}\n\n"


def test_a_missing_template_is_refused_unless_chosen(tmp_path):
    folder = make_llama(tmp_path / "bare")
    (folder / "chat_template.jinja").unlink()
    for make in (ExpertDataModule, UnseenTaskDataModule):
        with pytest.raises(DataError, match=r"no chat template.*data.chat_template: none") as e:
            make("toy_task.FirstLetter", str(folder)).setup("test")
        assert "\n" not in str(e.value)
        make("toy_task.FirstLetter", str(folder), chat_template="none").setup("test")


def test_tokens_that_the_model_does_not_have_pad_nothing_and_are_refused_in_prompts(llama_folder, tmp_path):
    """A tokenizer to which tokens were added, and a model that was not resized."""
    folder = shutil.copytree(llama_folder, tmp_path / "base")
    tokenizer = byte_tokenizer()
    size = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]", "additional_special_tokens": ["<|new|>"]})
    tokenizer.save_pretrained(folder)
    tokenizer = load_tokenizer(str(folder))
    assert len(tokenizer) == size + 2 and tokenizer.pad_token_id == tokenizer.eos_token_id
    assert render(tokenizer, BARE) == render(byte_tokenizer(), BARE)
    asks = Example("t/2", ({"role": "user", "content": "What is <|new|>?"},), "")
    for template in (ChatTemplate(), None):
        with pytest.raises(DataError, match=rf"'<\|new\|>', token \d+ of the tokenizer, and the base has {size};"):
            render(tokenizer, asks, template)
    with pytest.raises(UserError, match=f"from 0 to {size - 1}"):
        prompt_ids(Chat(BARE.messages), [5, size], tokenizer)


def test_a_template_that_is_there_is_left_out_where_none_is_wanted(llama_folder):
    for make in (ExpertDataModule, UnseenTaskDataModule):
        data = make("toy_task.FirstLetter", str(llama_folder), chat_template="none")
        data.setup("test")
        batch = next(iter(data.test_dataloader()))
        assert data.shown_prompts(batch) == [None] * len(batch)
        data.keep_prompts = True
        assert data.shown_prompts(batch) == [f"{e.question}\n\n" for e in batch.examples]
    with pytest.raises(ConfigError, match=r"data\.chat_template is none"):
        ExpertDataModule(chat_template="none", chat_template_kwargs={"enable_thinking": False})
    with pytest.raises(ConfigError, match=r"data\.chat_template must be one of model, none, not 'no'"):
        ExpertDataModule(chat_template="no")


THINKING = QWEN.removesuffix("{% endif %}") + (
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)


def folder_of(template, folder):
    make_llama(folder)
    (folder / "chat_template.jinja").write_text(template)
    return str(folder)


def first_prompt(base, **options):
    data = ExpertDataModule("toy_task.FirstLetter", base, keep_prompts=True, **options)
    data.setup("test")
    return data.shown_prompts(next(iter(data.test_dataloader())))[0]


def test_variables_reach_the_template_and_those_without_effect_are_named(tmp_path, recwarn):
    base = folder_of(THINKING, tmp_path / "llama")
    plain = first_prompt(base)
    assert first_prompt(base, chat_template_kwargs={"enable_thinking": False}) == plain + "<think>\n\n</think>\n\n"
    assert not [w for w in recwarn if "chat_template_kwargs" in str(w.message)]
    with pytest.warns(UserWarning, match=r"chat_template_kwargs\.enable_thinkin changes no prompt"):
        assert first_prompt(base, chat_template_kwargs={"enable_thinkin": False}) == plain


@pytest.mark.parametrize("name", ["tokenize", "add_generation_prompt", "chat_template", "return_dict", "messages"])
def test_variables_that_are_ours_are_refused_by_name(name):
    with pytest.raises(ConfigError, match=f"data.chat_template_kwargs.{name} cannot be set"):
        ExpertDataModule(chat_template_kwargs={name: True})


DATED = {  # Llama 3.2, Llama 3.1, SmolLM3, gpt-oss
    "fallback": "{% if not date_string is defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% else %}{% set date_string = 'old' %}{% endif %}{% endif %}",
    "constant": "{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}",
    "direct": "{% set date_string = strftime_now('%d %b %Y') %}",
    "macro": "{% macro today() %}{{ strftime_now('%d %b %Y') }}{% endmacro %}{% set date_string = today() %}",
}


@pytest.mark.parametrize("kind", DATED)
def test_a_prompt_with_a_date_is_the_same_tomorrow(kind, tmp_path):
    base = folder_of(DATED[kind] + "Today is {{ date_string }}. " + QWEN, tmp_path / "llama")
    assert first_prompt(base).startswith("Today is 26 Jul 2024. ")
    given = first_prompt(base, template_date="2031-02-03")
    assert given.startswith("Today is 26 Jul 2024. " if kind == "constant" else "Today is 03 Feb 2031. ")
    if kind in ("fallback", "constant"):
        given = first_prompt(base, chat_template_kwargs={"date_string": "1 Jan 2000"})
        assert given.startswith("Today is 1 Jan 2000. ")


@pytest.mark.parametrize("form", ["%d %b %Y", "%-d %B %Y", "%A, %m/%d/%y", "%Y-%m-%dT%H:%M:%S", "%j %U", "today"])
@pytest.mark.parametrize("head", ["", "\n", "  {% if true %}\nx{% endif %}", "{#- a -#}\n", "  y"])
def test_a_pinned_date_is_written_as_python_writes_it_and_changes_nothing_else(form, head, llama_folder):
    tokenizer = load_tokenizer(str(llama_folder))
    tokenizer.chat_template = head + "{{ '" + datetime(2031, 2, 3).strftime(form) + "' }} " + QWEN
    expected = render(tokenizer, BARE)
    tokenizer.chat_template = head + "{{ strftime_now('" + form + "') }} " + QWEN
    assert render(tokenizer, BARE, ChatTemplate(date="2031-02-03")) == expected


@pytest.mark.parametrize("date", ["26 Jul 2024", "2024-02-30", "", 5])
def test_a_date_that_is_none_is_refused(date):
    with pytest.raises(
        ConfigError, match=r"data\.template_date (must be a string|'.*' is not a date of the form 2024-07-26)"
    ):
        ExpertDataModule(template_date=date)


def test_an_evaluator_inside_fit_builds_prompts_as_the_run_does(tmp_path, monkeypatch):
    monkeypatch.setattr(AdaptationEvaluator, "load", lambda self, base: [])  # prompts need none
    base = folder_of(THINKING, tmp_path / "llama")
    data = ExpertDataModule("toy_task.FirstLetter", base, chat_template_kwargs={"enable_thinking": False})
    trainer = SimpleNamespace(datamodule=data, global_rank=0, world_size=1)
    evaluator = AdaptationEvaluator(experts=[], task="toy_task.FirstLetter", few_shot=2)
    module = SimpleNamespace(policy=None, task=None, alarms=None, curve=None, validated=[], answerer=len)
    evaluator.setup(trainer, module, "fit")
    ids = evaluator.own_data.shots().input_ids_BP[0].tolist()
    assert evaluator.own_data.tokenizer.decode(ids).endswith("<think>\n\n</think>\n\n")
    with pytest.raises(ConfigError, match="leaves nothing"):  # before training, not after the first validation
        AdaptationEvaluator(experts=[], task="toy_task.FirstLetter", few_shot=65).setup(trainer, module, "fit")


class SameQuestions(FirstLetter):
    """The same questions in every split."""

    def examples(self, split, data_dir=None):
        asked = [(EXAMPLE.messages[0], {"role": "user", "content": f"{QUESTION} ({i})"}) for i in range(8)]
        return [Example(f"same/{split}/{i}", messages, "8") for i, messages in enumerate(asked)]


def test_training_and_every_evaluation_read_the_same_ids(llama_folder):
    name, base = f"{__name__}.SameQuestions", str(llama_folder)
    data = ExpertDataModule(name, base, batch_size=8)
    data.setup("fit")
    data.setup("test")
    batches = [
        next(iter(loader)) for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    ]
    unseen = UnseenTaskDataModule(name, base, few_shot=2)
    unseen.setup("predict")
    batches += [unseen.shots(), next(iter(unseen.test_dataloader()))]
    tokenizer = byte_tokenizer()
    for batch in batches:
        for example, ids, mask in zip(batch.examples, batch.input_ids_BP, batch.attention_mask_BP, strict=True):
            assert ids[mask.bool()].tolist() == render(tokenizer, example)
    assert len(unseen.shots()) == 2 and len(unseen.scored()) == 6, "a question that is a shot is not scored"
    assert dispatch.render is render
    assert dispatch.collate is collate


def test_chat_templates_are_applied_in_one_place():
    """No second route can build another prompt, as it does for MBPP in the reference code."""
    package = Path(transformer2.__file__).parent
    users = set()
    for file in [*package.rglob("*.py"), *(package / "callbacks").glob("*.py")]:  # rglob follows no symlink
        names = {n.attr for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Attribute)}
        if "apply_chat_template" in names:
            users.add(file.relative_to(package).as_posix())
    # The second measures a model that was just built by transformers' own generate, as somebody else would.
    assert users == {"data/prompts.py", "tiny/vision/measure.py"}
