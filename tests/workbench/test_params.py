import os
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from pydantic import ValidationError

from cpsd_lib.workbench import yaml_files
from cpsd_lib.workbench.loading import load_params, own_params, resolve
from cpsd_lib.workbench.run import Run, overrides_of, params_text, show_params
from cpsd_lib.workbench.yaml_files import (
    ParameterError,
    flow_text,
    outputs_root,
    parse_overrides,
    parse_yaml,
    read_yaml,
    repo_root,
)

SMALL = "name: x\ndata: {kind: scenes}\nmodel: {name: test_resnet}\n"


def file(folder, text=SMALL):
    path = folder / "some.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refused(folder, text=SMALL, overrides=None):
    with pytest.raises(ParameterError) as caught:
        load_params(file(folder, text), overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("sed", "sed: unknown parameter; did you mean seed?"),
        ("trian", "trian: unknown parameter; did you mean train?"),
        ("data.imges", "data.imges: unknown parameter; did you mean data.images?"),
        ("model.weight", "model.weight: unknown parameter; did you mean model.weights?"),
        ("train.epoch", "train.epoch: unknown parameter; did you mean train.epochs?"),
        ("teachers.batchsize", "teachers.batchsize: unknown parameter; did you mean teachers.batch_size?"),
        ("student.alfa", "student.alfa: unknown parameter; did you mean student.alpha?"),
        ("evaluation.treshold", "evaluation.treshold: unknown parameter; did you mean evaluation.threshold?"),
        ("partition.exponnent", "partition.exponnent: unknown parameter; did you mean partition.exponent?"),
        ("epochs", "epochs: unknown parameter; did you mean train.epochs?"),
        ("train.alpha", "train.alpha: unknown parameter; did you mean student.alpha?"),
        ("student.seed", "student.seed: unknown parameter; did you mean seed?"),
        ("teacher_model.nam", "teacher_model.nam: unknown parameter; did you mean teacher_model.name?"),
        ("partition.zzz", "partition.zzz: unknown parameter; partition has: k, exponent, seed"),
        ("zzzzzz", "zzzzzz: unknown parameter; the top level has: name, seed"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_name(tmp_path, key, message):
    assert message in refused(tmp_path, overrides={key: 1})
    section, _, name = key.rpartition(".")
    if section in ("", "train", "teachers"):  # and just so in the file
        line = f"{section}: {{{name}: 1}}\n" if section else f"{name}: 1\n"
        assert message in refused(tmp_path, SMALL + line)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("seed", -1), ("seed", 2**40), ("seed", 1.5), ("seed", True), ("seed", "one"), ("seed", None)],
        *[("seeds", 0), ("seeds", 101), ("protocol", "Paper"), ("recipe", "relese"), ("recipe", ["release"])],
        *[("data.kind", "coco"), ("data.size", 8), ("data.size", 4000), ("data.size", "64"), ("data.groups", 1)],
        *[("data.limit", 3), ("data.bad_files", "ignore"), ("data.allow_overlap", "no"), ("data.images", 10**8)],
        *[
            ("data", 5),
            ("data", None),
            ("data", []),
            ("student", 5),
            ("evaluation", []),
            ("train", []),
            ("train", False),
        ],
        *[("partition.k", 0), ("partition.k", 2.0), ("partition.exponent", 0), ("partition.seed", 2**33)],
        *[("train.epochs", 0), ("train.epochs", True), ("train.epochs", "5"), ("train.epochs", 1e400)],
        *[("train.lr", 0), ("train.lr", -1e-3), ("train.lr", float("nan")), ("train.lr", float("inf"))],
        *[("train.lr", "fast"), ("train.lr", True), ("train.batch_size", 1), ("train.pct_start", 1)],
        *[("train.ema_decay", 1), ("train.clip", 1), ("train.optimizer", "sgd"), ("train.view", "none")],
        *[("device", "gpu"), ("device", "cuda:x"), ("train.compile", 1), ("train.select", "test")],
        *[("student.alpha", 1.1), ("student.alpha", float("-inf")), ("student.match", "l2"), ("student.views", 0)],
        *[("student.rows", []), ("student.rows", ["sd", "sd"]), ("student.rows", ["kd"]), ("student.rows", "sd")],
        *[("model.name", 50), ("model.head", "mlp"), ("model.prior", 0), ("model.prior", 1), ("model.options", 3)],
        *[("model.options", {"a": None}), ("model.options", {"a": [float("nan")]}), ("model.options", {"a": {}})],
        *[("model.options", {"pretrained": True}), ("model.options", {"checkpoint_path": "x"})],
        *[("model.options", {"num_classes": 3}), ("evaluation.threshold", 0), ("evaluation.batch_size", 0)],
    ],
)
def test_a_wrong_type_or_range_is_refused_by_the_name_the_user_wrote(tmp_path, key, value):
    message = refused(tmp_path, overrides={key: value})
    assert message.startswith(key) and message.count("\n") == 0


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("seed", 1.5, "must be a whole number; got 1.5"),
        ("seed", None, "must be a whole number; got null"),
        ("train.lr", "fast", "must be a number; got 'fast'"),
        ("train.lr", True, "must be a number; got true"),
        ("train.lr", 0, "must be more than 0; got 0"),
        ("train.clip", 1, "must be less than 1; got 1"),
        ("train.pct_start", 1.5, "must be less than 1; got 1.5"),
        ("train.val_share", 0.6, "must be less than 0.5; got 0.6"),
        ("train.compile", 1, "must be true or false; got 1"),
        ("model.name", 50, "must be text; got 50"),
        ("student.rows", "sd", "must be a list; got 'sd'"),
        ("data", 5, "must be a section of `name: value` lines; got 5"),
        ("student.match", "l2", "must be one of 'mse' or 'kl'; got 'l2'"),
        ("model.head_width", 12, "must be a multiple of 8; got 12"),
    ],
)
def test_a_fault_is_explained_in_the_words_of_a_yaml_file(tmp_path, key, value, expected):
    message = refused(tmp_path, overrides={key: value})
    assert expected in message and "Input" not in message


def test_all_faults_are_listed_at_once(tmp_path):
    text = SMALL.replace("x", "../x") + "sed: 1\ntrain: {epochs: 0, momentum: 1}\nstudent: {alpha: 2}\nrecipe: none\n"
    message = refused(tmp_path, text, {"data.size": 1})
    for part in ("name:", "sed:", "train.epochs:", "train.momentum:", "student.alpha:", "recipe:", "data.size:"):
        assert sum(line.startswith(part) for line in message.splitlines()) == 1, part


def test_what_is_missing_is_named(tmp_path):
    message = refused(tmp_path, "seed: 1\n")
    for name in ("name", "data", "model.name"):
        assert f"{name}: is needed and has no default" in message


@pytest.mark.parametrize("text", ["1e-4", "5e-4", "1E-4", "+1e-4", "1.e-4", ".1e-3", "1.0e-4", "0.0001"])
def test_numbers_in_scientific_notation_are_numbers_in_the_file_and_in_overrides(tmp_path, text):
    params = load_params(file(tmp_path, f"{SMALL}train: {{lr: {text}}}\n"), parse_overrides([f"student.lr={text}"]))
    assert params.teachers.lr == params.student.lr == pytest.approx(float(text))


def test_words_that_only_look_like_numbers_stay_words():
    assert parse_overrides(["a=e4", "b=1e", "c=1e4x", "d=1-e4"]) == {"a": "e4", "b": "1e", "c": "1e4x", "d": "1-e4"}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (SMALL + "name: y\n", "duplicate key"),
        (SMALL + "train: {lr: 1, lr: 2}\n", "duplicate key"),
        (SMALL + "seed: !!python/object/apply:os.system ['touch hit']\n", "not valid YAML"),
        (SMALL + "seed: !!python/name:os.system\n", "not valid YAML"),
        (SMALL + "data: !!map [1, 2]\n", "not valid YAML"),
        (SMALL + "seed: !!int abc\n", "not valid YAML"),
        (SMALL + "seed: !!bool abc\n", "not valid YAML"),
        (SMALL + "seed: !!timestamp abc\n", "not valid YAML"),
        (SMALL + "seed: 2024-13-45\n", "not valid YAML"),
        (SMALL + "? [a, b]\n: 1\n", "not valid YAML"),
        (SMALL + "seed: [\n", "not valid YAML"),
        (SMALL + "seed: " + "[" * 5000 + "\n", "not valid YAML"),
        (SMALL + "---\nname: y\n", "not valid YAML"),
        (SMALL + "seed: \x07\n", "not valid YAML"),
        (SMALL + "7: 2\n", "a name must be text, and 7 is not"),
        (SMALL + "train: {1: 2}\n", "a name must be text, and 1 is not"),
        (SMALL + "train: *unknown\n", "not valid YAML"),
        ("", "it holds nothing"),
        ("# only a comment\n", "it holds nothing"),
        ("- a\n- b\n", "it holds list"),
        ("just text\n", "it holds str"),
        ("name: Zürich\n".encode("latin-1"), "not UTF-8"),
        (b"\xff\xfe\x00\x01", "not UTF-8"),
    ],
)
def test_a_file_that_is_no_plain_mapping_is_refused(tmp_path, monkeypatch, text, part):
    monkeypatch.chdir(tmp_path)
    message = refused(tmp_path, text)
    assert part in message and "some.yaml" in message
    assert not (tmp_path / "hit").exists()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name: y\n", 4),
        ("train:\n  lr: 1\n  lr: 2\n", 6),
        ("seed: 2024-13-45\n", 4),
        ("seed: !!bool x\n", 4),
        ("seed: !!int ''\n", 4),
        ("\nseed: \x07\n", 5),
        ("train:\n  7: 2\n", 5),
        ("seed: a: b\n", 4),
        ("train: *unknown\n", 4),
    ],
)
def test_an_error_of_yaml_names_the_file_and_the_line_in_one_line(tmp_path, text, line):
    message = refused(tmp_path, SMALL + text)
    assert message.startswith(f"{tmp_path / 'some.yaml'} is not valid YAML: line {line}") and "\n" not in message


@pytest.mark.parametrize("teachers", ["teachers: {<<: *common, epochs: 3}", "teachers:\n  <<: *common\n  epochs: 3"])
def test_a_merge_of_sections_is_what_yaml_has_it_to_be(tmp_path, teachers):
    path = tmp_path / "merged.yaml"
    path.write_text(f"{SMALL}\ntrain: &common {{epochs: 2, lr: 0.25}}\n{teachers}\nstudent: {{<<: *common}}\n")
    params = load_params(path)
    assert (params.teachers.epochs, params.student.epochs) == (3, 2)
    assert params.teachers.lr == params.student.lr == 0.25


@pytest.mark.parametrize("text", ["train: &t {lr: *t}\n", "student: &s [*s]\n", "seed: &s [*s]\n"])
def test_an_anchor_that_holds_itself_is_refused_without_a_crash(tmp_path, text):
    section, _, _ = text.partition(":")
    assert refused(tmp_path, SMALL + text).startswith(section)


def test_yaml_is_read_by_version_1_2_and_names_in_overrides_are_text_too(tmp_path):
    words = "{a: 010, b: 0o10, c: yes, d: 1:30, e: 1e-4, f: ~}"
    assert parse_yaml(words, "here") == {"a": 10, "b": 8, "c": "yes", "d": "1:30", "e": 1e-4, "f": None}
    assert "train.compile: must be true or false; got 'yes'" in refused(tmp_path, SMALL + "train: {compile: yes}\n")
    assert "train.1" in refused(tmp_path, overrides={"train": {1: 2}})


@pytest.mark.parametrize(
    "value",
    [
        *[1e-7, 5e22, 0.1 + 0.2, -0.0, float("inf"), None, True, "", "yes", "true", "null", "1e-4", "010", "1:30", "~"],
        *[
            "2024-12-25",
            "a: b",
            "# x",
            "!x",
            "*a",
            "=",
            "<<",
            "'",
            '"',
            "a\nb",
            "\t",
            "\x07",
            "\x85",
            "\u2028",
            "Zürich",
        ],
        *[
            "long words " * 60,
            "x" * 300,
            [],
            {},
            {"z": 1, "a": [1, {"b": None}, [[]]]},
            {"options": {"stem width": [8]}},
        ],
    ],
)
def test_flow_text_is_read_back_as_the_same_value(value):
    assert parse_yaml(f"name: {flow_text(value)}", "here") == {"name": value}
    assert parse_yaml(f"name: {flow_text({'k': value})}after: 1\n", "here") == {"name": {"k": value}, "after": 1}


def test_the_parameters_of_a_run_are_shown_a_line_a_section_and_load_again(tmp_path):
    text = params_text(load_params("demo", {"train.lr": 1e-5, "partition.exponent": 1 / 3}))
    assert text.startswith("name: demo\nseed: 0\n") and "\ndata: {kind: scenes, size: 64, images: 5000, " in text
    shown = load_params(file(tmp_path, text))
    assert (shown.student.lr, shown.partition.exponent) == (1e-5, 1 / 3) and params_text(shown) == text
    assert list(read_yaml(tmp_path / "some.yaml")) == list(shown.model_dump())


def test_a_notebook_shows_what_differs_from_the_defaults_and_folds_the_rest(tmp_path, monkeypatch):
    monkeypatch.setenv("CPSD_OUTPUTS", str(tmp_path))
    words = {"train.lr": 0.1, "student.alpha": 0.25, "name": "own", "method": "shared_trunk"}
    run = Run(load_params("tiny", words))
    expected = {"name": "own", "method": "shared_trunk", "data": {"kind": "scenes", "size": 32, "images": 400}}
    expected |= {"model": {"name": "test_resnet"}, "train": {"lr": 0.1}, "teachers": {"epochs": 2}}
    assert own_params(run.params) == expected | {"student": {"alpha": 0.25}}
    # As a parameter file, which the rest of the defaults completes, it is the same run again.
    assert load_params(file(tmp_path, params_text(run.params))) == run.params == load_params("tiny", words)
    InteractiveShell.instance()
    with capture_output() as shown:
        show_params(run)
    (output,) = shown.outputs
    assert "alpha: 0.25" in output.data["text/plain"] and "pct_start" not in output.data["text/plain"]
    page = output.data["text/html"]
    assert page.index("alpha: 0.25") < page.index("<details>") < page.index("pct_start")


def test_a_wrong_parameter_is_one_sentence_in_a_notebook():
    shell = InteractiveShell.instance()
    with capture_output() as shown:
        shell.run_cell("from cpsd_lib import open_run\nopen_run('tiny', {'student.epoch': 5})")
    lines = (shown.stdout + shown.stderr).strip().splitlines()
    assert lines == ["ParameterError: student.epoch: unknown parameter; did you mean student.epochs?"]


def test_a_notebooks_overrides_are_a_mapping_or_its_text():
    assert overrides_of(None) == overrides_of("") == overrides_of("{}") == overrides_of({}) == {}
    assert overrides_of("{train.lr: 1e-4}") == overrides_of({"train.lr": 1e-4}) == {"train.lr": 1e-4}
    for wrong in ("[1]", "seed", "{", [1]):
        with pytest.raises(ParameterError, match="overrides"):
            overrides_of(wrong)


@pytest.mark.parametrize(
    "name", ["../x", "/abs", "a/b", "a\\b", "", ".", "..", ".cache", "-x", "x\n", "x y", "ä", "x" * 101, "x\0"]
)
def test_a_run_name_cannot_leave_the_outputs_folder(tmp_path, name):
    assert refused(tmp_path, overrides={"name": name}).startswith("name:")


@pytest.mark.parametrize(
    "key",
    ["__class__.x", "data.__init__", "a..b", "", ".", "data.", ".seed", "data.size ", "Seed", "a[0]", "a\n", "model.1"],
)
def test_a_hostile_override_key_is_no_parameter_name(tmp_path, key):
    assert "is not a parameter name" in refused(tmp_path, overrides={key: 1})
    assert "is not a parameter name" in refused(tmp_path, overrides=parse_overrides([f"{key}=1"]))


@pytest.mark.parametrize("word", ["x", "student.epochs", "--force", ""])
def test_an_override_without_a_value_says_how_to_write_one(word):
    with pytest.raises(ParameterError, match="key=value"):
        parse_overrides([word])


def test_override_values_are_read_as_yaml():
    pairs = ["a=1", "b=[sd, cpsd]", "c={x: 1}", "d=", "e=a=b", "f=null", "g=true", "h='5'"]
    expected = {"a": 1, "b": ["sd", "cpsd"], "c": {"x": 1}, "d": None, "e": "a=b", "f": None, "g": True, "h": "5"}
    assert parse_overrides(pairs) == expected
    for hostile in ("x=!!python/object/apply:os.getcwd []", "x=[", "x={a: 1, a: 2}", "x=2024-13-45"):
        with pytest.raises(ParameterError):
            parse_overrides([hostile])


def test_a_typed_value_is_not_cut_where_a_file_would_have_a_comment_or_a_name(tmp_path):
    for text in ("/d/photos #2", "C: drive", "#2", "photos:", "a: b: c"):
        assert parse_overrides([f"data.root={text}"]) == {"data.root": text}
    folder = tmp_path / "[1]"
    folder.mkdir()
    assert parse_overrides([f"data.root={folder}"]) == {"data.root": str(folder)}
    assert parse_overrides(["a='x #1'", "b=[1, 2]  # two"]) == {"a": "x #1", "b": [1, 2]}


def test_a_folder_with_a_dollar_in_its_name_is_taken_as_it_is(tmp_path):
    (tmp_path / "a$b").mkdir()
    params = load_params(file(tmp_path, SMALL), {"data.kind": "csv", "data.root": str(tmp_path / "a$b")})
    assert params.data.root == str(tmp_path / "a$b")


def test_a_section_in_overrides_is_laid_over_the_files_name_by_name():
    nested, dotted = (load_params("demo", one) for one in ({"train": {"epochs": 1}}, {"train.epochs": 1}))
    assert nested == dotted and nested.student.lr == load_params("demo").student.lr == 6e-3
    assert overrides_of("train.epochs=1 name='a b' student.rows=[sd]") == {
        "train.epochs": 1,
        "name": "a b",
        "student.rows": ["sd"],
    }


def test_an_override_cannot_go_below_a_value(tmp_path):
    assert "seed is a value, not a section" in refused(tmp_path, SMALL + "seed: 1\n", {"seed.x": 1})
    assert "model.name: name is a value" not in refused(tmp_path, overrides={"model.name": {}})
    assert "name is a value, not a section" in refused(tmp_path, overrides={"model.name.x": 1})


def test_an_override_fills_a_section_that_the_file_leaves_empty(tmp_path):
    assert load_params(file(tmp_path, SMALL + "train:\n"), {"train.epochs": 3}).student.epochs == 3


def test_an_override_of_one_section_leaves_another_alone_that_shares_its_anchor(tmp_path):
    path = file(tmp_path, SMALL + "teachers: &t {epochs: 2}\nstudent: *t\n")
    params = load_params(path, {"student.epochs": 9})
    assert (params.teachers.epochs, params.student.epochs) == (2, 9)


def test_the_callers_overrides_are_not_changed(tmp_path):
    overrides = {"train": {"epochs": 2}, "train.epochs": 3}
    assert load_params(file(tmp_path), overrides).student.epochs == 3
    assert overrides == {"train": {"epochs": 2}, "train.epochs": 3}


def test_recipe_then_train_then_teachers_and_student_then_overrides(tmp_path):
    path = file(tmp_path, SMALL + "recipe: release\n")
    assert load_params(path).student.lr == 1e-5
    path = file(tmp_path, SMALL + "recipe: release\ntrain: {lr: 1.0e-2, epochs: 7}\nstudent: {lr: 1.0e-3}\n")
    params = load_params(path)
    assert (params.teachers.lr, params.student.lr) == (1e-2, 1e-3)
    assert (params.teachers.epochs, params.student.epochs) == (7, 7)
    assert params.teachers.batch_size == 24  # what nobody names is the recipe's
    params = load_params(path, {"train.lr": 0.5, "student.epochs": 1})
    assert (params.teachers.lr, params.student.lr) == (0.5, 1e-3)
    assert (params.teachers.epochs, params.student.epochs) == (7, 1)


def test_the_release_recipe_is_the_papers_to_the_letter(tmp_path):
    params = load_params(file(tmp_path), {"recipe": "release"})
    expected = {
        "batch_size": 24,
        "optimizer": "adam",
        "weight_decay": 1e-4,
        "epochs": 80,
        "pct_start": 0.1,
        "ema_decay": 0.9997,
        "ema_warmup": False,
        "gamma_neg": 4,
        "gamma_pos": 0,
        "clip": 0.05,
        "view": "release",
        "precision": "float16",
    }
    for section, lr in ((params.teachers, 1e-4), (params.student, 1e-5)):
        assert section.lr == lr
        assert {name: getattr(section, name) for name in expected} == expected
    assert (params.student.alpha, params.student.match, params.student.views) == (0.5, "mse", None)
    assert params.model.normalize == "none"
    assert (params.protocol, params.partition.exponent) == ("honest", 0.5)
    assert (
        load_params(file(tmp_path), {"recipe": "release", "model.normalize": "imagenet"}).model.normalize == "imagenet"
    )


@pytest.mark.parametrize("recipe", ["default", "release"])
def test_resolved_parameters_load_again_as_the_same_parameters(tmp_path, recipe):
    overrides = {"recipe": recipe, "train.lr": 1e-5, "model.options": {"channels": [8, 16], "act": "silu", "a": 1e-7}}
    overrides |= {"student.rows": ["cpsd", "sd"], "student.alpha": 1 / 3, "data.images": 120, "train.clip": 0}
    params = load_params(file(tmp_path), overrides)
    dumped = params.model_dump(mode="json")
    assert "train" not in dumped
    again = load_params(file(tmp_path, flow_text(dumped)))
    assert again == params and again.model_dump(mode="json") == dumped
    assert resolve(dumped) == params


def test_parameters_cannot_be_changed_after_they_are_checked(tmp_path):
    params = load_params(file(tmp_path))
    with pytest.raises(ValidationError):
        params.seed = 3


def test_the_seeds_of_a_run_count_up_from_its_seed(tmp_path):
    assert load_params(file(tmp_path), {"seed": 5, "seeds": 3}).seed_list() == [5, 6, 7]


@pytest.mark.parametrize("name", sorted(path.stem for path in (repo_root() / "params").glob("*.yaml")))
def test_every_committed_parameter_file_is_valid(tmp_path, name):
    overrides = {"data.root": str(tmp_path)} if name == "csv_mobilenetv2" else {}
    params = load_params(name, overrides, paths=False)  # the papers' data is on no test machine
    assert params.name == name
    same = [load_params(other, overrides, paths=False) for other in (f"params/{name}.yaml", f"{name}.yaml")]
    assert params == same[0] == same[1]


@pytest.mark.parametrize(
    "name", ["coco_resnet101_tf", "nuswide_resnet101_tf", "voc2007_resnet101", "coco18_mobilenetv2"]
)
def test_a_committed_file_finds_its_data_through_the_variables_it_names(tmp_path, monkeypatch, name):
    (tmp_path / "data" / "coco18").mkdir(parents=True)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "mobilenetv2_100.safetensors").touch()
    for variable in ("COCO2014", "NUSWIDE", "VOC2007"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.delenv("CPSD_DATA", raising=False)
    with pytest.raises(ParameterError, match=r"data.root: the environment variable \w+ is not set"):
        load_params(name)
    for variable in ("COCO2014", "NUSWIDE", "VOC2007"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setenv("CPSD_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("GLOVE", str(tmp_path / "weights" / "mobilenetv2_100.safetensors"))
    assert load_params(name).data.root.startswith(str(tmp_path))


@pytest.mark.parametrize("kind", ["coco", "nuswide", "voc2007"])
def test_the_files_of_l2d_keep_nothing_of_the_cpsd_recipe_in_their_base(kind):
    params = load_params(f"{kind}_l2d_resnet101_resnet34", paths=False)
    assert params.data.kind.startswith(kind)
    assert (params.recipe, params.data.size, params.evaluation.threshold) == ("l2d", 224, 0.5)
    for model, backbone in ((params.model, "resnet34"), (params.teacher_model, "resnet101")):
        assert (model.name, model.head, model.weights) == (f"{backbone}.tv_in1k", "ml_decoder", "imagenet")
        assert model.normalize == "none"
    for training, stop in ((params.teachers, 30), (params.student, None)):
        assert (training.batch_size, training.epochs, training.stop_after, training.lr) == (64, 80, stop, 1e-4)
        assert (training.gamma_neg, training.clip, training.ema_decay, training.ema_warmup) == (0, 0, 0, False)


# ---- one file extends another ----------------------------------------------------------------------------------------

BASE = "recipe: release\ndata: {kind: scenes, size: 448}\nmodel: {name: resnet18, options: {a: 1, b: 2}}\ntrain: {epochs: 9}\n"


def extended(folder, text, base=BASE):
    (folder / "base").mkdir(exist_ok=True)
    (folder / "base" / "b.yaml").write_text(base)
    return load_params(file(folder, text))


@pytest.mark.parametrize("written", ["base/b", "base/b.yaml"])
def test_a_file_is_laid_over_the_one_it_extends_name_by_name(tmp_path, written):
    text = f"name: x\nextends: {written}\ndata: {{size: 576}}\nmodel: {{options: {{a: 3}}}}\ntrain: {{lr: 0.5}}\n"
    params = extended(tmp_path, text)
    assert (params.data.kind, params.data.size, params.model.name) == ("scenes", 576, "resnet18")
    assert params.model.options == {"a": 3}  # a value of a section gives way as a whole
    assert (params.teachers.epochs, params.student.lr, params.teachers.optimizer) == (9, 0.5, "adam")


def test_a_file_equals_its_base_and_its_own_lines_written_out(tmp_path):
    extending = extended(tmp_path, "name: x\nextends: base/b\nseed: 3\n")
    assert extending == load_params(file(tmp_path, BASE + "name: x\nseed: 3\n"))


@pytest.mark.parametrize("wrong", ["base/c", "nowhere", "", "[1]", "3", "base"])
def test_a_base_that_is_not_there_is_named(tmp_path, wrong):
    with pytest.raises(ParameterError, match=r"extends .*no such parameter file"):
        extended(tmp_path, f"name: x\nextends: {wrong}\n")


def test_a_base_extends_no_other(tmp_path):
    with pytest.raises(ParameterError, match="extends another"):
        extended(tmp_path, "name: x\nextends: base/b\n", BASE + "extends: b\n")


def test_a_file_elsewhere_finds_its_base_in_the_projects_params_but_first_beside_itself(tmp_path):
    text = f"name: x\nextends: base/coco2014\nmodel: {{name: resnet18}}\ndata: {{root: {tmp_path}}}\n"
    assert load_params(file(tmp_path, text)).data.kind == "coco2014"
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "coco2014.yaml").write_text(f"data: {{kind: voc2007, root: {tmp_path}}}\n")
    assert load_params(file(tmp_path, text)).data.kind == "voc2007"
    (tmp_path / "base" / "coco2014.yaml").rename(tmp_path / "base" / "other.yaml")
    message = refused(tmp_path, "name: x\nextends: base/none\n")
    assert f"looked in {tmp_path} and {repo_root() / 'params'}" in message


def test_a_file_that_extends_itself_is_refused(tmp_path):
    assert "extends itself" in refused(tmp_path, "name: x\nextends: some\n")


def test_a_fault_of_the_base_is_listed_like_one_of_the_file(tmp_path):
    with pytest.raises(ParameterError, match=r"sed: unknown parameter; did you mean seed\?"):
        extended(tmp_path, "name: x\nextends: base/b\n", BASE + "sed: 3\n")


# ---- what belongs together -------------------------------------------------------------------------------------------


def test_partition_files_belong_together_and_must_be_there(tmp_path):
    there = file(tmp_path)
    one = {"partition.use_released": True, "partition.released_co": str(there)}
    assert "needs both" in refused(tmp_path, overrides=one)
    assert load_params(there, one | {"partition.released_dis": str(there)}).partition.use_released
    assert "there is no file" in refused(tmp_path, overrides={"partition.released_co": "gone.json"})


def test_rows_matched_by_embeddings_need_a_head_that_has_them(tmp_path):
    rows = {"student.rows": ["student_only", "led"]}
    assert "head gap does not have" in refused(tmp_path, overrides=rows)
    assert load_params(file(tmp_path), rows | {"model.head": "ml_decoder"}).student.rows == ["student_only", "led"]
    teacher = {"teacher_model.name": "resnet18"}  # the teacher's own head counts too
    assert "head gap does not have" in refused(tmp_path, overrides=rows | teacher | {"model.head": "ml_decoder"})


def test_with_another_teacher_the_baseline_is_not_the_teacher(tmp_path):
    teacher = {"teacher_model.name": "resnet18"}
    assert "labels alone train student_only" in refused(tmp_path, overrides=teacher)
    params = load_params(file(tmp_path), teacher | {"student.rows": ["student_only", "sd"]})
    assert params.teacher_model.name == "resnet18" and params.model.name == "test_resnet"
    assert load_params(file(tmp_path)).teacher_model is None


def test_the_l2d_recipe_is_bce_and_stops_its_teacher_after_30_of_80_epochs(tmp_path):
    params = load_params(file(tmp_path), {"recipe": "l2d"})
    assert (params.teachers.stop_after, params.student.stop_after, params.teachers.epochs) == (30, None, 80)
    assert params.student.gamma_neg == params.student.clip == 0 and params.model.head == "ml_decoder"


def test_the_method_is_the_papers_unless_it_is_named(tmp_path):
    paper = load_params(file(tmp_path), {"train.epochs": 9})
    assert paper.method == "paper" and paper == load_params(file(tmp_path), {"train.epochs": 9, "method": "paper"})
    assert (paper.teachers.start, paper.teachers.frozen_stages, paper.student.start, paper.student.epochs) == (
        "model",
        0,
        "model",
        9,
    )


def test_shared_trunk_trains_tails_and_a_student_from_the_baseline_for_a_third_of_its_epochs(tmp_path):
    def shared(**overrides):
        overrides = {name.replace("__", "."): value for name, value in overrides.items()}
        return load_params(file(tmp_path), {"method": "shared_trunk", "train.epochs": 9} | overrides)

    teachers, student = shared().teachers, shared().student
    assert (teachers.start, teachers.frozen_stages, teachers.epochs, teachers.more_epochs) == ("baseline", -1, 9, 3)
    assert (student.start, student.epochs) == ("baseline", 3)
    # Of what the baseline trains, not of what both trainings were given.
    assert shared(teachers__epochs=30).student.epochs == shared(teachers__epochs=30).teachers.more_epochs == 10
    assert shared(train__epochs=1).student.epochs == shared(teachers__stop_after=2).student.epochs == 1
    # What a file has in one of the sections goes before the method.
    params = shared(student__epochs=4, teachers__frozen_stages=0)
    assert (params.student.epochs, params.student.start) == (4, "baseline")
    assert (params.teachers.frozen_stages, params.teachers.more_epochs) == (0, 3)


def test_patient_students_train_twice_as_long_on_a_view_an_epoch_and_are_matched_more_in_larger_batches(tmp_path):
    def student(**overrides):
        overrides = {name.replace("__", "."): value for name, value in overrides.items()}
        return load_params(file(tmp_path), {"method": "patient", "train.epochs": 9} | overrides).student

    assert (student().epochs, student().views, student().start) == (18, 9, "model")
    assert student(train__batch_size=64).mld == student(student__batch_size=64).mld == 160 == student().mld * 64 / 32
    # Of the schedule, whatever the teachers leave of it, as L2D's do: its students train all of theirs.
    assert (student(teachers__stop_after=4).epochs, student(train__stop_after=4).trained_epochs) == (18, 18)
    assert student(recipe="l2d", train__epochs=80).epochs == 160
    assert (student(student__epochs=5).epochs, student(student__mld=1).mld) == (5, 1)
    assert "student.batch_size" in refused(tmp_path, overrides={"method": "patient", "student.batch_size": None})
    without = {"method": "patient", "teachers.epochs": None, "teachers.stop_after": 2}
    assert "teachers.epochs" in refused(tmp_path, overrides=without)
    params = load_params("scenes_all")
    assert (params.student.epochs, params.student.views, params.student.mld) == (160, 80, 160)
    assert own_params(load_params(file(tmp_path), {"method": "patient"})).get("student") is None


def test_a_method_that_is_not_there_or_epochs_that_are_no_number_are_named(tmp_path):
    assert refused(tmp_path, overrides={"method": "trunk"}).startswith("method:")
    assert "teachers.epochs" in refused(tmp_path, overrides={"method": "shared_trunk", "teachers.epochs": None})
    wrong = refused(tmp_path, overrides={"method": "shared_trunk", "train.epochs": "many"})
    assert "train.epochs" in wrong and "student.start" not in wrong


def test_shared_trunk_needs_a_baseline_of_the_students_own_model(tmp_path):
    assert "method" in refused(tmp_path, overrides={"method": "shared_trunk", "student.rows": ["cpsd"]})


def test_a_csv_run_needs_a_root_that_is_a_folder(tmp_path):
    assert "data.root" in refused(tmp_path, overrides={"data.kind": "csv"})
    for wrong in ("nowhere", "README.md", "", "  ", "x" * 5000, "a\0b"):
        assert refused(tmp_path, overrides={"data.kind": "csv", "data.root": wrong}).startswith("data.root:")


def test_a_limit_is_not_for_scenes_which_have_a_number_of_images(tmp_path):
    assert "data.images=300" in refused(tmp_path, overrides={"data.limit": 300})
    assert "data.images=100" in refused(tmp_path, overrides={"data.limit": 20})  # as few as are drawn


def test_local_weights_must_be_a_file(tmp_path):
    for wrong in ("nowhere.pth", "notebooks", "", "Imagenet", "x" * 5000):
        message = refused(tmp_path, overrides={"model.weights": wrong})
        assert message.startswith("model.weights:") and "model.weights=null" in message and "imagenet" in message
    assert load_params(file(tmp_path), {"model.weights": "imagenet"}).model.weights == "imagenet"
    assert load_params(file(tmp_path), {"model.weights": None}).model.weights is None


def test_an_unset_environment_variable_in_a_path_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("CPSD_NOT_SET", raising=False)
    message = refused(tmp_path, overrides={"data.kind": "csv", "data.root": "$CPSD_NOT_SET/coco18"})
    assert "$CPSD_NOT_SET/coco18" in message and "the environment variable CPSD_NOT_SET is not set" in message
    assert "CPSD_NOT_SET is not set" in refused(tmp_path, overrides={"model.weights": "${CPSD_NOT_SET}.pth"})


def test_an_environment_variable_and_the_home_folder_are_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("CPSD_SOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "photos").mkdir()
    for text in ("$CPSD_SOME/photos", "${CPSD_SOME}/photos", "~/photos"):
        params = load_params(file(tmp_path), {"data.kind": "csv", "data.root": text})
        assert params.data.root == str(tmp_path / "photos")


def test_relative_paths_start_at_the_project_whatever_the_working_folder(tmp_path, monkeypatch):
    path, resolved = file(tmp_path), set()
    for folder in (repo_root(), repo_root() / "notebooks", tmp_path):
        monkeypatch.chdir(folder)
        params = load_params(path, {"data.kind": "csv", "data.root": "params", "model.weights": "README.md"})
        resolved.add((params.data.root, params.model.weights))
    assert resolved == {(str(repo_root() / "params"), str(repo_root() / "README.md"))}
    assert load_params("tiny").name == "tiny"


def test_the_outputs_folder_is_the_same_from_every_working_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CPSD_OUTPUTS", "some/where")
    folders = set()
    for folder in (repo_root(), repo_root() / "notebooks", tmp_path):
        monkeypatch.chdir(folder)
        folders.add(outputs_root())
    assert folders == {repo_root() / "some" / "where"}
    monkeypatch.setenv("CPSD_OUTPUTS", str(tmp_path))
    assert outputs_root() == tmp_path.resolve()
    monkeypatch.delenv("CPSD_OUTPUTS")
    assert outputs_root() == repo_root() / "outputs"


def test_another_project_folder_can_be_named(tmp_path, monkeypatch):
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "mine.yaml").write_text(SMALL)
    monkeypatch.setenv("CPSD_ROOT", str(tmp_path))
    assert repo_root() == tmp_path.resolve()
    assert load_params("mine").name == "x"


def test_a_parameter_file_that_is_not_there_is_answered_with_a_near_name():
    with pytest.raises(ParameterError, match="did you mean tiny"):
        load_params("params/tinny.yaml")
    for wrong in ("qqqqqqq", "", ".", "params", "x" * 5000, "a\0b", "../params"):
        with pytest.raises(ParameterError, match="no parameter file"):
            load_params(wrong)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="only a plain user of POSIX can be refused a file")
def test_a_file_that_may_not_be_read_is_a_parameter_error(tmp_path):
    path = file(tmp_path)
    path.chmod(0)
    with pytest.raises(ParameterError, match="cannot be read"):
        load_params(path)


def test_parameter_files_may_be_given_as_paths(tmp_path, monkeypatch):
    path = file(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert load_params(path) == load_params(str(path)) == load_params(Path("some.yaml"))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            {"teachers.frozen_stages": 4},
            "teachers.frozen_stages is for teachers that start from the baseline: teachers.start=baseline",
        ),
        ({"teachers.more_epochs": 4}, "teachers.more_epochs is for teachers that start from the baseline"),
        ({"student.rows": ["baseline", "sd_continued"]}, "sd_continued is for teachers that start from the baseline"),
        (
            {"teachers.start": "baseline", "student.rows": ["cgpd"]},
            "needs a row that trains one, such as baseline or sd",
        ),
        (
            {"student.start": "baseline", "student.rows": ["student_only"]},
            "needs a row that trains one, such as baseline or sd",
        ),
        (
            {"student.start": "baseline", "student.rows": ["sd"], "teacher_model.name": "resnet18"},
            "with a teacher_model of its own the baseline is another model",
        ),
    ],
)
def test_a_start_from_the_baseline_needs_one(overrides, expected):
    with pytest.raises(ParameterError, match=expected):
        load_params("tiny", overrides)
    assert load_params("tiny", {"train.start": "baseline", "teachers.frozen_stages": 2}).student.start == "baseline"


def test_all_that_does_not_go_together_is_said_at_once():
    with pytest.raises(ParameterError) as caught:
        load_params(
            "tiny", {"engine.threads": 2, "teachers.more_epochs": 4, "student.rows": ["sd_continued", "wide_mld"]}
        )
    assert len(str(caught.value).splitlines()) == 4


def test_a_relative_path_starts_at_the_projects_folder_or_else_where_the_command_is_typed(tmp_path, monkeypatch):
    (tmp_path / "my_photos").mkdir()
    (tmp_path / "params").mkdir()
    monkeypatch.chdir(tmp_path)
    words = {"data.kind": "csv", "data.images": 100}
    assert load_params("tiny", words | {"data.root": "my_photos"}).data.root == str(tmp_path / "my_photos")
    assert load_params("tiny", words | {"data.root": "params"}).data.root == str(repo_root() / "params")
    monkeypatch.chdir(tmp_path / "my_photos")
    with pytest.raises(ParameterError, match="or where the command is typed"):
        load_params("tiny", words | {"data.root": "my_photos"})


LAUGHS = "".join(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]\n" for n in range(1, 10))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            f"x0: &x0 [sd]\n{LAUGHS}student: {{rows: *x9}}\n",
            "line 6, column 15: more than 50 values within each other",
        ),
        ("x: " + "[" * 60_000, "column 53: more than 50 values within each other"),
        ("x:\n" + "- " * 60 + "1", "more than 50 values within each other"),
        ("x: [" + "1, " * 2_000_000, "has more than 65,536 characters"),
    ],
)
def test_a_file_that_stands_for_too_much_is_refused(tmp_path, text, words):
    assert words in refused(tmp_path, SMALL + text)


def test_a_file_of_megabytes_and_a_value_of_megabytes_are_refused_before_they_are_read_as_yaml(tmp_path, monkeypatch):
    monkeypatch.setattr(yaml_files, "_yaml", lambda: pytest.fail("read as YAML"))
    with pytest.raises(ParameterError, match="more than 65,536 characters"):
        load_params(file(tmp_path, SMALL + "x: [" + "1, " * 2_000_000))
    for value in ("x" * 5_000_000, "/" * 5_000_000, "[1, " * 1_000_000):
        with pytest.raises(ParameterError, match="more than 65,536 characters") as caught:
            parse_overrides([f"name={value}"])
        assert len(str(caught.value)) < 400


def test_forty_faults_are_listed_and_the_others_counted(tmp_path):
    message = refused(tmp_path, SMALL + "".join(f"name_{n}: 1\n" for n in range(60)))
    assert len(message.splitlines()) == 41 and message.endswith("... and 20 more")
