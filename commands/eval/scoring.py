"""reid-eval DATA: Rank@k, mAP and mINP of what is trained, exported, indexed and served."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from reidserve.commands.console import DONE, FAILED, Device, Index, Json, Pattern, Precision, quiet_grpc
from reidserve.commands.eval.fit import check_files, check_fit, check_told
from reidserve.commands.eval.material import Scene, check_material, compare_models, compare_sources, read_material
from reidserve.commands.eval.options import Ruled, Scored, Told, Varied, Written
from reidserve.commands.eval.stages import (
    Stage,
    score_artifact,
    score_checkpoint,
    score_features,
    score_gallery,
    score_server,
)
from reidserve.commands.place import read_model
from reidserve.errors import UsageError

if TYPE_CHECKING:
    from reidserve.commands.eval.material import Material
    from reidserve.embed import Device as EmbedDevice
    from reidserve.embed import Precision as EmbedPrecision
    from reidserve.index import IndexKind


def score(
    data: Annotated[Path | None, Parameter(show_default=False)] = None,
    /,
    *,
    scored: Scored = Scored(),  # noqa: B008
    query_crops: Annotated[Path | None, Parameter(show_default=False)] = None,
    gallery_crops: Annotated[Path | None, Parameter(show_default=False)] = None,
    pattern: Pattern = None,
    ruled: Ruled = Ruled(),  # noqa: B008
    varied: Varied = Varied(),  # noqa: B008
    told: Told = Told(),  # noqa: B008
    written: Written = Written(),  # noqa: B008
    precision: Precision = "fp32",
    device: Device = "cpu",
    index: Index = "auto",
    json: Json = False,
) -> int:
    """Score what is deployed on a dataset: Rank-k, mAP and mINP of a checkpoint, an artifact, a gallery and a server.

    What is named is scored side by side, and where points are lost is said. By the rule of Market-1501, for each query
    gallery images with its pid and its camid are dropped, as is junk (pid -1); queries without a right image are left
    out of the means, counted and explained. An image that cannot be read is reported and left out; the exit code is
    then 1.

    Args:
        data: A dataset in the layout of Market-1501, DukeMTMC-reID, MSMT17, CUHK03-NP or VeRi-776, query/ and gallery/
            with a folder per identity, a .csv with the columns path, pid, camid and split, a test list of VehicleID;
            or a .npz with query_features, query_pids, query_camids and gallery_*, of anyone's model.
        query_crops: In place of a dataset: the folder of queries.
        gallery_crops: In place of a dataset: the folder of gallery crops.
        device: What runs the model; a checkpoint runs in torch, on the GPU where this is one of the GPU's.
    """
    quiet_grpc()
    check_files(written, data)
    from reidserve.commands.eval.output import make_document, print_document, print_machine, write_files

    if data is not None and data.suffix == ".npz":
        if scored.anything or query_crops or gallery_crops or pattern or ruled.multi_query or varied.flip:
            raise UsageError(f"{data} holds features: models, crops, --multi-query and --flip have no use for them")
        check_told(told, scored, index, precision)
        scene = _score_features(data, ruled, varied, written)
    else:
        if not scored.anything:
            scored = replace(scored, model="model")
        check_told(told, scored, index, precision)
        material = read_material(data, query_crops, gallery_crops, pattern, ruled)
        check_fit(material.protocol, ruled, scored, varied, written)
        scene = _score_crops(
            material,
            scored,
            varied,
            told,
            precision=precision,
            device=device,
            index=index,
            max_rank=written.max_rank,
        )
    document = make_document(scene, seed=ruled.seed, max_rank=written.max_rank)
    wrote = write_files(written, scene, document)
    failures = list(dict.fromkeys(failure for stage in scene.stages for failure in stage.failures))
    (print_machine if json else print_document)(document, wrote, failures)
    return FAILED if failures or wrote.failures else DONE


def _score_features(path: Path, ruled: Ruled, varied: Varied, written: Written) -> "Scene":
    from reidserve.datasets import path_to_text
    from reidserve.evaluate.features import read_features

    protocol = ruled.as_protocol("market1501")
    if protocol.name == "image-to-track":
        raise UsageError("a .npz says nothing of tracks")
    check_fit(protocol, ruled, Scored(), varied, written)
    query, gallery = read_features(path)
    findings = check_material(query.labels, gallery.labels, protocol)
    stage = score_features(query, gallery, protocol, varied)
    return Scene(
        "features", path_to_text(path.absolute()), protocol.name, query.labels, gallery.labels, findings, [stage]
    )


def _score_crops(
    material: "Material",
    scored: Scored,
    varied: Varied,
    told: Told,
    *,
    precision: "EmbedPrecision",
    device: "EmbedDevice",
    index: "IndexKind",
    max_rank: int,
) -> "Scene":
    from reidserve.evaluate import labels_of

    protocol = material.protocol
    query, gallery = labels_of(material.query), labels_of(material.gallery)
    findings = check_material(query, gallery, protocol)
    stages: list[Stage] = []
    if scored.checkpoint is not None:
        stages.append(score_checkpoint(scored.checkpoint, told, material, varied, device=device))
    if scored.model is not None:
        artifact = score_artifact(read_model(scored.model), material, varied, precision=precision, device=device)
        stages.append(artifact)
        if scored.gallery is not None:
            stages.append(score_gallery(scored.gallery, artifact, protocol, kind=index, max_rank=max_rank))
    if scored.server is not None:
        stages.append(score_server(scored.server, scored.server_gallery, material, max_rank=max_rank))
    for stage in stages:
        if stage.subjects[0].name in ("gallery", "server"):
            findings += compare_sources(stage.subjects[0].name, stage.subjects[0].evaluation.gallery, gallery)
    findings += compare_models(stages)
    return Scene(material.layout, material.dataset, material.named, query, gallery, findings, stages)
