"""The options of a report on runs."""

from dataclasses import MISSING, dataclass

from ..options import option


@dataclass(frozen=True)
class ReportConfig:
    """Options of ``tdpo report`` and ``tdpo.report``."""

    run: list[str] = option(MISSING, "folders of runs, as tdpo fit wrote them", metavar="RUN")
    out: str = option("report.html", "file of the page", metavar="FILE")
    png: str | None = option(None, "folder for the charts as pictures for papers", metavar="DIR")
    format: str = option(
        "png", "of those pictures: pixels, or lines that scale", choices=("png", "svg", "pdf")
    )
    scale: float = option(3.0, "pixels of a PNG for one of the page", gt=0, le=10)
    title: str | None = option(None, "of the page", metavar="TEXT")
    metric: list[str] = option(
        [], "figure whose curve is drawn, such as rewards/margins; all when not given", metavar="NAME"
    )
    cache: str | None = option(
        None,
        "cache whose pairs are looked at; the first evaluation cache of a run when not given, or the one it "
        "was trained from",
        metavar="DIR",
    )
    pairs: int = option(
        200, "pairs that a policy is asked about where tdpo eval has not done it; 0 asks none", ge=0
    )
    pair: list[str] = option(
        [],
        "pair to show token by token, by its pair_id or the first digits of it, beside the hardest and the "
        "noisiest; may be repeated",
        metavar="ID",
    )
    show: int = option(
        12, "further pairs to show token by token: the hardest, the noisiest, and some at random", ge=0
    )
    tokens: str | None = option(
        None, "file for all values of the tokens that are shown, a row a token, as Parquet", metavar="FILE"
    )
    seed: int = option(0, "of the draw of those pairs", ge=0)
    batch_tokens: int = option(8192, "tokens of a forward pass at most, padding included", gt=0)
    dtype: str = option(
        "auto", "precision of the policies", choices=("auto", "float32", "bfloat16", "float16")
    )
