"""Numbers in, numbers out: no model, no device, no files.

One file a question: `layers` (which layer and kind of module is a parameter of?), `distances`,
`samples` (which examples are a set, which are independent?), `conflicts` (cosine of safety and
utility gradients), `spectra`, `subspaces` (overlap), `sufficiency` (what does one example give?),
`shares` (how much of a displacement lies in a subspace?), `subspace_drift`, `rates`, `pairing`
(what is compared with what?), `drift` (attack success against distance), `agreement`, `verdict`.
For sweeps: `tradeoffs` (which settings to choose?), `effects` (which setting matters?), `matching`
(curves read at the same place), `collapse` (which measure of drift explains all runs?).
`jackknife` serves `conflicts`.
"""
