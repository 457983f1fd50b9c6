module PyNODEStabilizedExt

using OrdinaryDiffEqCore: OrdinaryDiffEqCore
using OrdinaryDiffEqStabilizedRK: ROCK2, ROCK2Cache, ROCK4, ROCK4Cache
using PyNODE: @interpolated, SOLVERS, ExactClock, look_between!

@interpolated ROCK2Cache 2
@interpolated ROCK4Cache 2

for cache in (ROCK2Cache, ROCK4Cache)
    @eval function OrdinaryDiffEqCore.perform_step!(x::ExactClock, cache::$cache, repeat_step = false)
        invoke(OrdinaryDiffEqCore.perform_step!, Tuple{Any,$cache,Any}, x, cache, repeat_step)
        look_between!(x, cache)
        return
    end
end

function __init__()
    SOLVERS["ROCK2"] = ROCK2
    SOLVERS["ROCK4"] = ROCK4
    return
end

end
