"""The methods and how the battery calls them: one line per method.

``case(id, ...)`` takes

- ``inputs``: which of the room's tiny inputs (see the room's function in ``fixtures.py``),
- ``oracle``: a function of ``tests/oracles/<room>*_oracle.py``, found by its name; a card of status ``checked`` needs one,
- ``random``: False when the seed must not change the result,
- ``na``: check -> why it does not apply to this method, beside what the room's fixture says,

and then whatever the room's fixture understands (``teachers=2``, ``student="vit"``), and the method's parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """One line: a method, and how it is called."""

    method: str
    inputs: str = ""
    oracle: str = ""
    random: bool = True
    na: Mapping[str, str] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)

    @property
    def room(self) -> str:
        return self.method.split("/")[0]

    @property
    def slug(self) -> str:
        return self.method.split("/")[1]


CASES: list[Case] = []


def case(
    method: str,
    *,
    inputs: str = "",
    oracle: str = "",
    random: bool = True,
    na: Mapping[str, str] | None = None,
    **given: Any,
) -> Case:
    """Adds a line."""
    CASES.append(Case(method, inputs, oracle, random, na or {}, given))
    return CASES[-1]


# one line per method
# fmt: off
case("distill/none", inputs="images", teachers=0, epochs=2, oracle="ce_loss")
case("distill/label-smoothing", inputs="images", teachers=0, epochs=2, eps=0.2, oracle="smoothed_loss")
case("distill/kd", inputs="images", teachers=1, epochs=2, oracle="kd_loss")
case("distill/ensemble", inputs="images", teachers=2, epochs=2, teacher_weights=[1, 3], oracle="ensemble_loss")
case("distill/ofa-kd", inputs="images", teachers=1, epochs=2, eps=[1.5, 1.0, 1.2], oracle="ofa_loss")
case("distill/bd-kd", inputs="images", teachers=1, epochs=2, tau=2.0, oracle="bd_loss")
case("distill/fitnets", inputs="images", oracle="fitnets_loss", student_layers=["resnet.encoder.stages.0"], teacher_layers=["vit.layers.1"])
case("distill/at", inputs="images", teachers=["convnext"], oracle="at_loss")
case("distill/sp", inputs="images", teachers=["convnext"], student="vit", oracle="sp_loss", student_layers=["vit.layers.1", "penultimate"], teacher_layers=["convnext.encoder.stages.1", "penultimate"])
case("distill/rkd", inputs="images", student="convnext", oracle="rkd_loss")
case("distill/crd", inputs="images", student="convnext", count=20, oracle="crd_loss")
case("distill/dkd", inputs="images", warmup_epochs=3, oracle="dkd_loss")
case("distill/dist", inputs="images", student="vit", tau=2.0, beta=2.0, oracle="dist_loss")
case("distill/logit-standardisation", inputs="images", oracle="standardised_loss")
case("distill/dml", inputs="images", teachers=2, tau=2.0, oracle="dml_loss")
case("distill/kdcl", inputs="images", teachers=2, oracle="kdcl_loss")
case("distill/compose", inputs="images", student="convnext", oracle="composed_loss", parts=[{"use": "kd", "tau": 2.0}, {"use": "rkd", "angle_weight": 0, "label_weight": 0, "weight": 2.0}])
case("distill/reviewkd", inputs="images", student="vit", teachers=["convnext"], warmup_epochs=3, oracle="review_loss")
case("measure/classification", resamples=500, oracle="classification")
case("measure/flips", resamples=500, oracle="knows_more")
case("measure/cka", layers=["auto", "penultimate"], batch=24, oracle="layer_likeness", na={"refuses_wrong_shape": "layers of any widths are compared, and classes play no part"})
case("measure/choice", inputs="choices", resamples=500, normalize="byte", oracle="likeliest_choice")
case("measure/answers", inputs="answers", resamples=500, max_tokens=6, oracle="written_answers")
case("measure/likelihood", inputs="texts", resamples=500, oracle="bits_per_byte")
case("distill/fantastic-gains", inputs="images", teachers=2, epochs=2, tau=2.0, top_k=4, alpha=0.8, oracle="gains_loss")
case("distill/hard", inputs="images", epochs=2, student_steps=2, augmentor_steps=2, ce=0.5, oracle="hard_loss")
case("distill/tgeo-kd", inputs="images", oracle="tgeo_loss", outer_lr=0.1, val_fraction=0.2)
case("distill/mix-kd", inputs="images", student="convnext", oracle="mix_loss")
case("distill/trg", inputs="images", teachers=["vit"], student="convnext", k=3, contrast=0.5, oracle="trg_loss")
case("distill/kd3", inputs="images", teachers=["resnet"], student="convnext", min_per_class=16, contrast=0.5, oracle="kd3_loss")
case("distill/dhkd", inputs="images", head="linear", oracle="dhkd_loss")
case("distill/nd-kd", inputs="images", student="convnext", warmup_epochs=0, oracle="nd_loss")
case("distill/sft", inputs="tokens", teachers=0, oracle="sft_loss")
case("distill/lora", inputs="tokens", teachers=0, rank=2, oracle="lora_loss")
case("distill/lm-kd", inputs="tokens", divergence="skewed-reverse-kl", top_k=5, alpha=0.7, oracle="lm_kd_loss")
case("distill/uld", inputs="tokens", top_k=5, oracle="uld_loss", na={"refuses_wrong_shape": "reads teachers of any vocabulary"})
case("distill/fusechat", inputs="tokens", teachers=2, top_k=5, lm_weight=0.6, oracle="fusechat_loss", na={"refuses_wrong_shape": "reads sources of any vocabulary"})
case("distill/infigfusion", inputs="tokens", teachers=2, top_k=4, oracle="infigfusion_loss", na={"refuses_wrong_shape": "reads sources of any vocabulary"})
case("distill/gkd", inputs="tokens", on_policy=0.9, beta=0.3, max_new_tokens=5, oracle="gkd_loss")
case("distill/seqkd", inputs="prompts", max_new_tokens=6, temperature=1.0, oracle="seqkd_loss", na={"refuses_wrong_shape": "texts travel: teachers read any vocabulary"})
case("distill/dpo", inputs="prompts", objective="pro", candidates=3, max_new_tokens=6, oracle="dpo_loss", na={"refuses_wrong_shape": "teachers read any vocabulary"})
case("distill/knfu", inputs="images", teachers=0, clients=3, epochs=4, local_epochs=1, oracle="knfu_loss")
case("merge/linear", inputs="vit", base=False, weight=[1, 2, 3], random=False, oracle="average")
case("merge/task-arithmetic", inputs="llama", weight=[0.5, -0.2, 0.4], scale=0.7, random=False, oracle="task_vectors")
case("distill/diswot", inputs="images", teachers=["convnext"], inits=2, score_batch=16, space={"depths": [[1, 1], [2, 1]]}, sp=10.0, ickd=2.5, oracle="diswot_loss")
case("merge/slerp", inputs="llama", base=False, models=2, t=0.3, random=False, oracle="arc")
case("merge/nuslerp", inputs="llama", models=2, weight=[1, 3], along="row", random=False, oracle="arc_of_rows")
case("merge/multislerp", inputs="vit", weight=[1, 2, 3], random=False, oracle="sphere")
case("merge/karcher", inputs="llama", base=False, weight=[1, 2, 3], random=False, oracle="sphere")
case("merge/geometric-median", inputs="llama", base=False, random=False, oracle="median_point")
case("merge/passthrough", inputs="vit", base=False, models=1, scale=0.5, random=False, oracle="scaled")
case("merge/ties", inputs="llama", density=[0.3, 0.5, 0.2], weight=[1, 2, 0.5], random=False, oracle="ties_merge")
case("merge/dare-linear", inputs="vit", density=0.4, weight=0.3, rescale="l1", oracle="dare_added")
case("merge/dare-ties", inputs="llama", density=0.3, oracle="dare_elected")
case("merge/breadcrumbs", inputs="llama", density=0.5, gamma=0.1, weight=0.4, random=False, oracle="crumbs")
case("merge/della", inputs="llama", density=0.5, epsilon=0.2, oracle="magprune")
case("merge/sce", inputs="llama", select_topk=0.5, random=False, oracle="select_calculate_erase")
case("merge/varm", inputs="llama", random=False, oracle="variation_ratio")
case("merge/model-stock", inputs="vit", random=False, oracle="stock")
case("merge/ram", inputs="llama", epsilon=0.02, r=0.5, alpha=0.9, random=False, oracle="shared_and_own")
case("merge/nearswap", inputs="llama", base=False, models=2, t=0.01, random=False, oracle="clipped_move")
case("merge/arcee-fusion", inputs="llama", base=False, models=2, random=False, oracle="standing_out")
case("merge/tsv", inputs="llama", random=False, oracle="singular_tasks")
case("merge/iso-c", inputs="llama", random=False, oracle="level_spectrum")
case("merge/twin", inputs="llama", base=False, random=False, oracle="shared_and_exclusive")
case("merge/lore", inputs="llama", base=False, steps=5, random=False, oracle="low_rank_estimate")
case("decode/static-arithmetic", experts=2, alpha=[0.7, -0.3], random=False, oracle="arithmetic")
case("decode/proxy-tuning", alpha=0.8, random=False, oracle="arithmetic")
case("decode/contrastive", beta=0.7, plausible=0.001, random=False, oracle="contrast")
case("decode/cad", alpha=0.6, random=False, oracle="aware")
case("decode/adacad", random=False, oracle="adaptive")
case("decode/mixture", experts=2, weights="entropy", tau=0.5, random=False, oracle="mixed")
case("decode/dynamic-logits-fusion", experts=2, random=False, oracle="giant")
case("decode/ck-plug", alpha="auto", k=5, random=False, oracle="plug")
case("merge/fisher", inputs="vit", base=False, weight=[1, 2, 3], calibration=3, labels="model", random=False, oracle="certain_mean")
case("merge/regmean", inputs="reader", base=False, calibration=3, random=False, oracle="regression_mean")
case("merge/rcp", inputs="reader", models=2, calibration=2, penalty=200.0, random=False, oracle="voted")
case("merge/aim", inputs="reader", calibration=1, weight=[1, 2, 3], random=False, oracle="relaxed")
case("merge/sens", inputs="reader", calibration=3, temperature=0.2, random=False, oracle="sensitive")
case("merge/acm", inputs="reader", calibration=1, scale=1.5, random=False, oracle="informed")
case("decode/span-fusion", experts=2, span=3, random=False, oracle="stretch")
case("decode/rice", markers={"sings": 1.0, "runs": -0.5}, min_count=5, random=False, oracle="association")
case("build/bertnet", inputs="masked", most=12, random=False, oracle="tuples")
case("build/link-longtail", inputs="rules", beam=8, random=False, oracle="bindings")
case("build/neurocomparatives", inputs="pairs", beam=4, survivors=40, longest=12, comparatives=["heavier", "lighter", "bigger", "smaller"], random=False, oracle="comparisons")
case("build/symbolic-kd", inputs="triples", tails=3, new_heads=4, recall=0.5, oracle="triples")
case("build/mechgpt", inputs="passages", passage=40, held_share=0.3, oracle="passages")
case("build/astro-kg", inputs="papers", most_share=1.0, count=10, draws=20, oracle="papers")
case("build/offline", inputs="documents", random=False, oracle="plain_facts")
case("build/distant-supervision", inputs="documents", table=True, random=False, oracle="weighted_logistic")
case("build/lm-extract", inputs="documents", lm="extract", random=False, oracle="grounded_rows")
case("build/docs2kg", inputs="documents", random=False, oracle="section_of")
case("build/graphusion", inputs="documents", lm="fused", concepts=20, topics=2, random=False, na={"resume_equals_one_go": "without a language model it takes seconds, and a model's replies are kept by content"}, oracle="settled_relations")
case("build/kag", inputs="documents", random=False, oracle="walk_shares")
case("build/hydra", inputs="panel", domain="towns and composers", random=False, oracle="hierarchy")
case("build/table-rows", inputs="rows", key="name", columns={"employer": {"relation": "works for", "class": "company"}, "born": "birth year"}, random=False, oracle="mapped_rows", na={"resume_equals_one_go": "rows are read in one go, in less time than keeping state takes"})
case("synthesize/labeling", rationale="kept", random=False, oracle="labels")
case("synthesize/expansion", wanted=7, requests=4, at_once=2, shots=2, shots_made=1, similar=0.6, oracle="tasks")
case("synthesize/curation", axes={"topic": ["salt", "stars", "ships"], "level": ["school", "university"]}, per_cell=2, similar=0.85, quality=0.3, random=False, oracle="lessons")
case("synthesize/feedback", candidates=3, gap=2.0, random=False, oracle="preferences")
case("synthesize/self-knowledge", verify="number", samples=3, per_prompt=2, hint=True, random=False, oracle="verified")
case("synthesize/feature", top_k=5, random=False, oracle="said_inside")
