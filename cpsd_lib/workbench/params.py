"""The parameters of a run: names, types, ranges, defaults, and what does not go together."""

import math
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator

from cpsd_lib.data import DataSettings
from cpsd_lib.support import counted, digest
from cpsd_lib.training import Training
from cpsd_lib.workbench.rows import COMPONENTS, EQUAL, ROWS, branches_of
from cpsd_lib.workbench.yaml_files import repo_root

# What build_model decides itself, and what would let timm read a file behind its back.
_DECIDED = {"name", "num_classes", "weights", "head", "normalize", "prior", "in_chans", "features_only"}
_DECIDED |= {"head_width", "label_vectors", "norm_layer"}
_READS_FILES = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}


def _options(options):
    refused = sorted((_DECIDED | _READS_FILES) & options.keys())
    if refused:
        raise ValueError(f"{', '.join(refused)} cannot be set here")
    for name, value in options.items():
        for one in value if isinstance(value, list) else [value]:
            if not isinstance(one, (int, float, str, bool)) or (isinstance(one, float) and not math.isfinite(one)):
                raise ValueError(f"{name} must be a finite number, text, true, false, or a list of these")
    return options


def once_each(values):
    """Return `values`, a list of any JSON-able; ValueError where one stands in it twice."""
    if len({digest(value) for value in values}) < len(values):
        raise ValueError("each value at most once")
    return values


def _number_or_share(labelled):
    if not 0 < labelled < 1 and (labelled < 2 or labelled % 1):
        raise ValueError("a share between 0 and 1, or a whole number of images, at least 2")
    return labelled


def _one_or_each_split(value):
    values = list(value.values()) if isinstance(value, dict) and value.keys() == {"train", "test"} else [value]
    if not all(isinstance(one, bool) for one in values):
        raise ValueError("must be true, false, or one of them a split: {train: true, test: false}")
    return value


def _path(kind, is_there, builtin=None, hint=""):
    """Return the type of a path of a `kind`, "folder" or "file", that must be there; builtin: a word that is taken as it is."""

    def resolve(path, info: ValidationInfo):
        if path == builtin or (info.context is not None and not info.context["paths"]):
            return path  # paths=False: a look at a run whose data is elsewhere
        if not path.strip():
            raise ValueError(f"an empty path{hint}")
        text = os.path.expanduser(path)
        expanded = os.path.expandvars(text)  # where no `$` is part of its name
        # From the project's folder, as a file has it, or else from where the user types.
        here = [str(start / one) for one in (text, expanded) for start in (repo_root(), Path.cwd())]
        found = next(filter(is_there, here), None)
        if found is None and "$" in expanded:
            unset = " and ".join(re.findall(r"\$\{?(\w+)", expanded)) or "$"
            raise ValueError(f"the environment variable {unset} is not set; set it, or give the path itself{hint}")
        if found is None:
            where = "a relative path starts at the project's folder, or where the command is typed"
            raise ValueError(f"there is no {kind} {here[2]} ({where}){hint}")
        return found

    return Annotated[str, AfterValidator(resolve)]


Folder = _path("folder", os.path.isdir)
File = _path("file", os.path.isfile)
LabelVectors = _path("file", os.path.isfile, builtin="learned")
# Leaving the line out would not help: a parameter file may set it.
_OTHERS = (
    "; weights: null (on the command line model.weights=null) starts from random ones, weights: imagenet fetches timm's"
)
Weights = _path("file", os.path.isfile, builtin="imagenet", hint=_OTHERS)


class Section(BaseModel):
    # strict: `epochs: yes` is no 1 and `epochs: "5"` no 5.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True)


# What data.root holds, by kind.
_HOLDS = {
    "csv": "annotations.csv",
    "coco2014": "train2014/, val2014/ and annotations/ (or train_anno.json and val_anno.json)",
    "nuswide": "Flickr/, ImageList/, TrainTestLabels/ (or Groundtruth/) and Concepts81.txt",
    "voc2007": "VOCdevkit/VOC2007 (or VOCtrainval2007/ and VOCtest2007/)",
    "labels": "labels.npz",
}


class DataParams(Section, DataSettings):
    """Which labelled images, and how large they are decoded: data.DataSettings, its ranges checked."""

    root: Folder | None = None
    difficult: Annotated[bool | dict[str, bool], BeforeValidator(_one_or_each_split)] = True
    labelled: Annotated[float, AfterValidator(_number_or_share)] | None = None

    @model_validator(mode="after")
    def _root_fits_the_kind(self):
        if self.kind in _HOLDS and self.root is None:
            raise ValueError(f"kind {self.kind} needs data.root, the folder that holds {_HOLDS[self.kind]}")
        if self.kind == "scenes" and self.limit is not None:
            raise ValueError(f"kind scenes has no data.limit; data.images={max(100, self.limit)} draws that many")
        return self


STUDY_SECONDS = 900  # of notebook 02's cuts, above which its study has fewer repeats


class PartitionParams(Section):
    """How the label graph is cut, in both branches, and what 02_partition compares the cut with."""

    k: int = Field(4, ge=1, le=1000)  # parts of each branch, and so its teachers
    exponent: float = Field(0.5, gt=0, le=4)  # of the conditional probabilities in the affinity
    seed: int = Field(0, ge=0, le=2**31)  # of k-means in the cut
    refine_co: bool = False  # move and swap classes after the cut of P+
    refine_dis: bool = True  # the same for P-: the plain cut of P- is degenerate (COCO, k = 2: 79 + 1 classes)
    # The formula of the paper has 1 on the diagonal of P-, which makes parts of one class cheap; its code ignores a diagonal.
    self_loops: bool = False
    # The largest part has at most this many times the classes of the smallest (or one more); None: sizes as they come.
    balance: float | None = Field(None, ge=1, le=1000)
    released_co: File | None = None  # a partition file, ours or the paper's, that the cut is compared with
    released_dis: File | None = None  # the same for P-
    use_released: bool = False  # True: train on those two, and cut nothing
    # cut for the study of stability alone
    study_k: Annotated[list[Annotated[int, Field(ge=2)]], AfterValidator(once_each)] = [2, 3, 5, 8]
    study_repeats: int = Field(3, ge=2, le=100)  # seeds, and random halves of the images, a k

    def study(self, num_classes):
        """Return (numbers of parts, repeats, a sentence on the time) of 02_partition: repeats that fit into STUDY_SECONDS."""
        ks, squared = sorted(k for k in self.study_k if k < num_classes), num_classes**2
        # Seconds of a cut on a Zen core, 20 to 6,000 classes.
        plain, fine = 0.1 + 2.4e-7 * squared, 0.25 + 9e-7 * squared
        branches = sum(fine if refined else plain for refined in (self.refine_co, self.refine_dis))

        def seconds(repeats):  # beside the comparison of cuts: the run's, six exponents, and those of every k
            return 3 * (plain + fine) + branches * (7 + len(ks) * (2 + 3 * repeats))

        counts = range(self.study_repeats, 1, -1)
        fit = next((count for count in counts if not ks or seconds(count) <= STUDY_SECONDS), 1)
        time = f"{seconds(fit):.0f} s" if seconds(fit) < 90 else f"{seconds(fit) / 60:,.0f} minutes"
        text = f"02_partition cuts the graph of {counted(num_classes, 'class', 'classes')} for about {time}"
        if fit < self.study_repeats:
            text += f", with {fit} instead of {self.study_repeats} repeats; partition.study_k=[] leaves the study out"
        if many := [str(k) for k in self.study_k if k >= num_classes]:
            text += f"; partition.study_k: k = {', '.join(many)} left out of the study"
        return ks, fit, text

    @model_validator(mode="after")
    def _both_files_or_a_cut(self):
        if self.use_released and not (self.released_co and self.released_dis):
            raise ValueError("use_released needs both partition.released_co and partition.released_dis")
        return self


# The paper's models that are more than a backbone and a gap head; models/classifier.PRESETS has them all.
_OWN_HEADS = {"resnet101_tf": "label_transformer", "q2l_resnet101": "query2label"}


class ModelParams(Section):
    """A timm backbone and its head, or a model of the paper by its name (classifier.PRESETS), which has a head of its own."""

    name: str  # a backbone of timm, or a model of the paper
    head: Literal["gap", "label_transformer", "query2label", "ml_decoder"] = "gap"  # gap: mean over places, one layer
    # width of a head with tokens, in multiples of 8; None: the papers' own (1024, 2048, 768)
    head_width: int | None = Field(None, ge=8, le=8192, multiple_of=8)
    # label_transformer: "learned", or a file: GloVe text, or an .npz with class_names and vectors
    label_vectors: LabelVectors | None = None
    # None: random; "imagenet": timm's own from the hub; else a local file
    weights: Weights | None = None
    normalize: Literal["auto", "none", "imagenet"] = "auto"  # auto: what the weights were trained with; none: [0, 1]
    prior: float = Field(0.12, gt=0, lt=1)  # the new head's first probability of every class; 0.12 is a bias of -2
    options: Annotated[dict[str, Any], AfterValidator(_options)] = {}  # of timm's backbone

    @model_validator(mode="before")
    @classmethod
    def _own_head(cls, raw):
        # Written into the parameters, so that the record of a run has the head.
        name = raw.get("name") if isinstance(raw, dict) else None
        return {"head": _OWN_HEADS[name]} | raw if isinstance(name, str) and name in _OWN_HEADS else raw

    @model_validator(mode="after")
    def _parts_fit(self):
        head = _OWN_HEADS.get(self.name, self.head)
        if head != self.head:
            raise ValueError(f"{self.name} has the head {head}; name its backbone to give it another")
        if self.head == "label_transformer" and self.label_vectors is None:
            raise ValueError("label_transformer needs model.label_vectors: a GloVe text file, an .npz, or learned")
        if self.head != "label_transformer" and self.label_vectors is not None:
            raise ValueError(f"the head {self.head} takes no label_vectors; only label_transformer does")
        if self.head == "gap" and self.head_width is not None:
            raise ValueError("the head gap has no head_width")
        return self


class TrainParams(Section, Training):
    """One training: training.Training, its ranges checked, its batches and the labels' loss; by default for small data."""

    batch_size: int = Field(32, ge=2, le=65_536)  # images
    gamma_neg: float = Field(4, ge=0, le=10)  # exponents of the asymmetric loss; all three 0: binary cross entropy
    gamma_pos: float = Field(0, ge=0, le=10)  # that of positives
    clip: float = Field(0.05, ge=0, lt=1)  # probability taken off the negatives
    view: Literal["plain", "flip", "default", "release"] = "default"  # augmentation of the training images
    select: Literal["last", "val"] = "last"  # which epoch is kept
    # select val: fraction of train held out, where the data has no val split
    val_share: float = Field(0.1, gt=0, lt=0.5)
    # What the teachers of parts, or the students, start from: `model` as every method of the papers does, or the trained
    # baseline of the same seed.
    start: Literal["model", "baseline"] = "model"

    @property
    def asl(self):
        """The arguments of the asymmetric loss."""
        return {"gamma_neg": self.gamma_neg, "gamma_pos": self.gamma_pos, "clip": self.clip}

    def held_out(self, count):
        """Return how many of `count` training images `select: val` holds out where the data has no val split."""
        return max(1, int(self.val_share * count))


class TeacherParams(TrainParams):
    """Teacher training; teachers that start from the baseline can have its first stages in common, frozen."""

    # How many of the baseline's stages (models/trunk.stages_of) are frozen; -1: all but the last, -2: all but the last two.
    frozen_stages: int = Field(0, ge=-100, le=100)
    # Epochs of the teachers that start from the baseline; None: as many as the baseline's.
    more_epochs: int | None = Field(None, ge=1)


class StudentParams(TrainParams):
    """Student training and how it matches its teachers: alpha and match are CPSD's; mld, cd and id are L2D's."""

    # of the table: cpsd list
    rows: Annotated[list[Literal[tuple(ROWS)]], Field(min_length=1), AfterValidator(once_each)] = list(COMPONENTS)
    alpha: float = Field(0.5, ge=0, le=1)  # CPSD: weight of the co branch; 1 - alpha is the dis branch's
    match: Literal["mse", "kl"] = "mse"  # CPSD: the distance of logits
    mld: float = Field(10, ge=0)  # weights of L2D's losses, in the rows that have them, beside the labels' loss
    temperature: float = Field(1, gt=0)  # of MLD there: logits are divided by it, the loss is times its square
    cd: float = Field(100, ge=0)  # LED: the images' embeddings of a class
    id: float = Field(1000, ge=0)  # LED: the classes' embeddings of an image
    teacher_mode: Literal["eval", "train"] = "eval"  # train: the release's fault, batch norm on the batch's statistics
    views: int | None = Field(None, ge=1)  # stored views, reused round robin; None: one an epoch


# models/released.LAYOUTS: the checkpoints that came with the paper.
Released = Literal["resnet101", "resnet101_tf", "q2l_resnet101", "tresnet_l", "resnext50_swsl"]


class EvaluationParams(Section):
    """What is computed on the test split."""

    threshold: float = Field(0.5, gt=0, lt=1)  # probability from which a class counts as predicted, for CP ... OF1
    batch_size: int = Field(128, ge=1)  # images
    released: Released | None = None  # score a released checkpoint of this model, not the run's own training
    checkpoint: File | None = None  # its file

    @model_validator(mode="after")
    def _both_or_none(self):
        if (self.released is None) != (self.checkpoint is None):
            raise ValueError("released (the model's name) and checkpoint (its file) belong together: give both or none")
        return self


class EngineParams(Section):
    """Who makes what the store lacks, this process or tasks of Ray: it changes no result, and is in no key."""

    kind: Literal["local", "ray"] = "local"
    address: str | None = None  # of a running Ray, or auto, the one here; None: $RAY_ADDRESS, else one of its own
    threads: int | None = Field(None, ge=1, le=1024)  # CPUs of a task; None: 1, beside a GPU its share of all


class Params(Section):
    """Everything that determines a run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")  # folder below outputs/
    seed: int = Field(0, ge=0, le=2**31)  # of weights, order and views
    seeds: int = Field(1, ge=1, le=100)  # the whole of training is repeated with seed, seed + 1, ...
    # paper: the best epoch is chosen on TEST, noted beside every figure
    protocol: Literal["honest", "paper"] = "honest"
    recipe: Literal["default", "release", "l2d"] = "default"  # what is not given: RECIPES in workbench/loading.py
    method: Literal["paper", "shared_trunk", "patient"] = "paper"  # as it is, one frozen trunk, longer students
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")  # auto, cpu, cuda:0
    engine: EngineParams = EngineParams()  # local, or ray: who makes what the store lacks
    data: DataParams
    partition: PartitionParams = PartitionParams()
    model: ModelParams  # the student's
    teacher_model: ModelParams | None = None  # None: the same as the student's
    wide_model: ModelParams | None = None  # of the wide teacher, in the row wide_mld
    teachers: TeacherParams
    student: StudentParams
    evaluation: EvaluationParams = EvaluationParams()

    @model_validator(mode="after")
    def _goes_together(self):
        if faults := list(self._faults()):
            raise ValueError("\n".join(faults))
        return self

    def _faults(self):
        teachers, student, rows = self.teachers, self.student, self.student.rows
        if self.engine.kind == "local" and (self.engine.address or self.engine.threads):
            yield "engine: address and threads are for engine=ray"
        if self.engine.kind == "ray" and self.device.startswith("cuda:"):
            yield f"device: under engine: ray Ray chooses each task's GPU; device=cuda, not {self.device}"
        if (released := self.evaluation.released) not in (None, self.model.name):
            yield f"evaluation.released is {released}, but these are the parameters of model {self.model.name}"
        if self.teacher_model is not None and "baseline" in rows:
            yield "student.rows: with a teacher_model the baseline would be the teacher; labels alone train student_only"
        if self.teacher_model is not None and EQUAL in rows:
            yield f"student.rows: {EQUAL} has CPSD's compute where its teachers are the student's own model; no teacher_model"
        if "wide_mld" in rows and self.wide_model is None:
            yield "student.rows: wide_mld has a wider teacher; give it as wide_model, as model is given"
        led = [row for row in rows if ROWS[row].uses_embeddings]
        if led and "gap" in (self.model.head, (self.teacher_model or self.model).head):
            yield (
                f"student.rows: {', '.join(led)} match label-wise embeddings, which the head gap does not have; take "
                "ml_decoder (L2D's), query2label or label_transformer for model.head and teacher_model.head"
            )
        later = [f"teachers.{name} is" for name in ("frozen_stages", "more_epochs") if getattr(teachers, name)]
        later += ["student.rows: sd_continued is"] if "sd_continued" in rows else []
        for what in later if teachers.start == "model" else []:
            yield f"{what} for teachers that start from the baseline: teachers.start=baseline"
        why = " (method: shared_trunk starts there)" if self.method == "shared_trunk" else ""
        if (student.start == "baseline" or "cap" in rows) and self.teacher_model is not None:
            what = f"student.start=baseline{why}" if student.start == "baseline" else "student.rows: cap starts there"
            yield f"{what}: with a teacher_model of its own the baseline is another model"
        if "baseline" in (teachers.start, student.start) and "whole" not in branches_of(rows):
            yield f"start: baseline{why} needs a row that trains one, such as baseline or sd, in student.rows"

    def seed_list(self):
        """Return the seeds of this run, in order."""
        return list(range(self.seed, self.seed + self.seeds))
