# What follows a step of an SDIRK, a Rosenbrock or a BDF method: the correction of its estimate, and its interpolation.

@interpolated TRBDF2Cache 2
@interpolated KenCarp3Cache 2
@interpolated KenCarp4Cache 2
@interpolated KenCarp5Cache 2
@interpolated Rosenbrock23Cache 2
@interpolated RosenbrockCache 3

# It is called after each step, accepted or not, before the estimate is looked at.
function OrdinaryDiffEqCore.stepsize_controller!(x::ExactClock, alg::Smoothed)
    SMOOTHING === :scaled && alg.smooth_est && (x.EEst /= smoothed_by(x))
    forget_rate!(x.cache.nlsolver)
    look_between!(x, x.cache)
    return invoke(OrdinaryDiffEqCore.stepsize_controller!, Tuple{Any,Any}, x, alg)
end

# `auto_stiff` calls the step of the method that it has switched to.
function OrdinaryDiffEqCore.perform_step!(x::ExactClock, cache::Rosenbrock23Cache, repeat_step = false)
    invoke(OrdinaryDiffEqCore.perform_step!, Tuple{Any,Rosenbrock23Cache,Any}, x, cache, repeat_step)
    count_time!(x, cache)
    look_between!(x, cache)
    return
end

function OrdinaryDiffEqCore.perform_step!(x::ExactClock, cache::RosenbrockCache, repeat_step = false)
    resize!(x.k, own_vectors(cache))  # which takes all of them for its own
    invoke(OrdinaryDiffEqCore.perform_step!, Tuple{Any,RosenbrockCache,Any}, x, cache, repeat_step)
    look_between!(x, cache)
    return
end

PyNODE.is_multistep(::Union{FBDF,QNDF}) = true

function OrdinaryDiffEqCore.perform_step!(x::ExactClock, cache::FBDFCache, repeat_step = false)
    invoke(OrdinaryDiffEqCore.perform_step!, Tuple{Any,FBDFCache,Any}, x, cache, repeat_step)
    x.force_stepfail || estimate_first!(x, cache)
    return
end
