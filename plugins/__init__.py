"""The built-in objectives, registered through the same hooks as anyone else's.

One file a family; each imports the objective contract only.
"""

from ..core.hookspecs import hookimpl

_FAMILIES = {
    "dpo": {"dpo": "DPO", "robust_dpo": "RobustDPO", "exo_pair": "EXOPair"},
    "tdpo": {"tdpo1": "TDPO1", "tdpo2": "TDPO2"},
    "mallows": {"mallows_theta": "MallowsTheta", "mallows_phi": "MallowsPhi", "mallows_ipo": "MallowsIPO"},
    "tis": {"tis_dpo": "TISDPO"},
    "wpo": {"wpo": "WPO"},
    "bmc": {"dpo_bmc": "DPOBMC"},
    "mrpo": {"mrpo": "MRPO"},
    "kto": {"kto_given_z": "KTOGivenZ", "kto_batch": "KTOBatch", "kto_pair_legacy": "KTOPairLegacy"},
    "batch": {
        "aot": "AOT",
        "aot_unpaired": "AOTUnpaired",
        "rpo_relative": "RPORelative",
        "rpo_diagonal": "RPODiagonal",
        "bco_batch": "BCOBatch",
    },
    "sft": {"sft": "SFT"},
    "hpo": {"hpo_weighted_nll": "HPOWeightedNLL"},
    "links": {"hinge": "Hinge", "focalpo": "FocalPO", "discopop": "DiscoPOP"},
    "squared": {"ipo": "IPO", "sppo_hard": "SPPO", "cal_dpo": "CalDPO"},
    "anchored": {"apo_zero": "APOZero", "apo_down": "APODown", "nca_pair": "NCAPair", "bco_pair": "BCOPair"},
    "positive": {"dpop": "DPOP", "minor_dpo": "MinorDPO"},
    "length": {
        "dpo_norm": "DPONorm",
        "r_dpo": "RDPO",
        "ld_dpo": "LDDPO",
        "sampo": "SamPO",
        "d2po_decay": "D2PODecay",
    },
    "f_dpo": {"f_dpo": "FDPO"},
    "reference_free": {"simpo": "SimPO", "cpo": "CPO", "slic": "SLiC", "orpo": "ORPO", "asft": "ASFT"},
}
_WEIGHTINGS = {
    "tis": {"tis": "TIS"},
    "mallows": {"mallows": "Mallows"},
    "wpo": {"wpo": "LikelyPairs"},
    "bmc": {"bmc": "BMC"},
    "length": {"decay": "Decay", "ld": "PastShorter", "sampo": "Drawn"},
}
_STATISTICS = {"bmc": {"edits": "Edits"}, "embedding": {"prompt_embedding": "PromptEmbedding"}}


@hookimpl
def tdpo_objectives() -> dict[str, str]:
    """Names of the built-in objectives."""
    return _targets(_FAMILIES)


@hookimpl
def tdpo_weightings() -> dict[str, str]:
    """Names of the built-in weightings."""
    return _targets(_WEIGHTINGS)


@hookimpl
def tdpo_statistics() -> dict[str, str]:
    """Names of the built-in statistics."""
    return _targets(_STATISTICS)


def _targets(families: dict[str, dict[str, str]]) -> dict[str, str]:
    return {
        name: f"tdpo.plugins.{family}:{attribute}"
        for family, members in families.items()
        for name, attribute in members.items()
    }
