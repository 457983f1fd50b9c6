module PyNODELowStorageExt

using OrdinaryDiffEqLowStorageRK: RDPK3SpFSAL35, RDPK3SpFSAL49
using PyNODE: add_explicit!, probe_all

const ADDED = ("RDPK3SpFSAL35" => RDPK3SpFSAL35, "RDPK3SpFSAL49" => RDPK3SpFSAL49)
const TABLEAUS = probe_all(ADDED)

__init__() = add_explicit!(ADDED, TABLEAUS)

end
