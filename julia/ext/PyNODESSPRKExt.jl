module PyNODESSPRKExt

using OrdinaryDiffEqSSPRK: SSPRK104, SSPRK33, SSPRK43
using PyNODE: add_explicit!, probe_all

const ADDED = ("SSPRK33" => SSPRK33, "SSPRK43" => SSPRK43, "SSPRK104" => SSPRK104)
const TABLEAUS = probe_all(ADDED)

__init__() = add_explicit!(ADDED, TABLEAUS)

end
