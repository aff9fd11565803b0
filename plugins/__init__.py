"""The built-in objectives, registered through the same hooks as anyone else's.

One file a family; each imports the objective contract only.
"""

from ..core.hookspecs import hookimpl

_FAMILIES = {
    "dpo": {"dpo": "DPO", "robust_dpo": "RobustDPO", "exo_pair": "EXOPair"},
    "tdpo": {"tdpo1": "TDPO1", "tdpo2": "TDPO2"},
    "links": {"hinge": "Hinge", "focalpo": "FocalPO", "discopop": "DiscoPOP"},
    "squared": {"ipo": "IPO", "sppo_hard": "SPPO", "cal_dpo": "CalDPO"},
    "anchored": {"apo_zero": "APOZero", "apo_down": "APODown", "nca_pair": "NCAPair"},
    "positive": {"dpop": "DPOP", "minor_dpo": "MinorDPO"},
    "length": {"dpo_norm": "DPONorm", "r_dpo": "RDPO", "ld_dpo": "LDDPO", "d2po_decay": "D2PODecay"},
    "f_dpo": {"f_dpo": "FDPO"},
    "reference_free": {"simpo": "SimPO", "cpo": "CPO", "slic": "SLiC", "orpo": "ORPO", "asft": "ASFT"},
}


@hookimpl
def tdpo_objectives() -> dict[str, str]:
    """Names of the built-in objectives."""
    return {
        name: f"tdpo.plugins.{family}:{attribute}"
        for family, members in _FAMILIES.items()
        for name, attribute in members.items()
    }
