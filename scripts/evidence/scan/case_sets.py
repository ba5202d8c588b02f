"""The sets of cases of scripts/scan_study.py by name."""

from __future__ import annotations

from scripts.evidence.scan import densities, edges, inputs, malformed, stability, truth
from scripts.evidence.scan.cases import CaseSet

CASE_SETS = {
    "truth": CaseSet(truth.truth_cases, truth.truth_table),
    "refine": CaseSet(edges.edge_cases, edges.edge_table),
    "density": CaseSet(densities.density_cases, densities.density_table),
    "references": CaseSet(densities.reference_cases, densities.reference_table),
    "stability": CaseSet(stability.stability_cases, stability.stability_table),
    "data": CaseSet(inputs.data_cases, inputs.data_table),
    "malformed": CaseSet(malformed.malformed_cases, malformed.malformed_table),
    "size": CaseSet(inputs.size_cases, inputs.size_table),
}
