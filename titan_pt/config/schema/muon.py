"""[optimizer] of `name = "Muon"` with its table [optimizer.muon]. Imported where a config names it."""

from typing import Annotated, Literal

from pydantic import Field

from titan_pt.config.schema.section import NonNegative, Positive, PositiveInt, Section
from titan_pt.config.schema.training import Optimizer


class MuonTable(Section):
    """[optimizer.muon] the blocks' matrices by Muon; embeddings, output layer and the rest by AdamW."""

    lr: Positive | None = None
    """Peak rate of the matrices. Unset: optimizer.lr."""
    weight_decay: NonNegative | None = None
    """Decay of the matrices. Unset: optimizer.weight_decay."""
    embedding_lr: Positive | None = None
    """Peak rate of the embeddings, a tied output layer too. Unset: optimizer.lr."""
    embedding_weight_decay: NonNegative = 0.0
    """Decay of the embeddings."""
    output_lr: Positive | None = None
    """Peak rate of an output layer of its own. Unset: optimizer.lr."""
    output_weight_decay: NonNegative | None = None
    """Decay of an output layer of its own. Unset: optimizer.weight_decay."""
    other_lr: Positive | None = None
    """Peak rate of norms and of all else that is no matrix. Unset: optimizer.lr."""
    other_weight_decay: NonNegative = 0.0
    """Decay of norms and of all else that is no matrix."""
    adjust_lr: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    """Factor on an update of rows x columns. "match_rms_adamw": 0.2 sqrt(max(rows, columns)), an update as large as
    AdamW's, so that its rate and decay fit; "original": sqrt(max(1, rows / columns)), with rates about 0.02."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.95
    """Decay of the gradient average."""
    nesterov: bool = True
    """Look ahead by one step of the average."""
    coefficients: Literal["quintic", "polar_express"] = "quintic"
    """Polynomial of the orthogonalisation. "quintic": Muon's own, the same in each iteration; "polar_express": another
    in each, nearer to orthogonal."""
    ns_steps: Annotated[PositiveInt, Field(le=20)] = 5
    """Iterations of the orthogonalisation."""
    normuon: bool = False
    """NorMuon: rows of the update are divided by the root of their mean square over the steps."""
    normuon_beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.95
    """Decay of that mean square."""
    cautious_weight_decay: bool = False
    """Decay only those weights of the matrices that the update makes smaller too."""


class MuonOptimizer(Optimizer):
    """[optimizer]"""

    muon: MuonTable = MuonTable()
