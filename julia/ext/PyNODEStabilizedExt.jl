module PyNODEStabilizedExt

using OrdinaryDiffEqStabilizedRK: ROCK2, ROCK4
using PyNODE: SOLVERS

function __init__()
    SOLVERS["ROCK2"] = ROCK2
    SOLVERS["ROCK4"] = ROCK4
    return
end

end
