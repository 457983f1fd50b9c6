module PyNODEAdamsExt

using OrdinaryDiffEqAdamsBashforthMoulton: VCABM
using PyNODE: SOLVERS

function __init__()
    SOLVERS["VCABM"] = VCABM
    return
end

end
