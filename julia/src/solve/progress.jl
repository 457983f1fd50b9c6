# How far the solve under way is, where a thread of Python's reads it.

"The time and the step of the solve under way, as of some milliseconds ago; Python reads the numbers at their address."
mutable struct Progress
    t::Float64
    dt::Float64
    integrator::Any  # `nothing` between solves
end

const PROGRESS = Progress(NaN, NaN, nothing)

"How many independent samples have been solved."
const SAMPLES = Threads.Atomic{Int}(0)

"The addresses of the two numbers of `PROGRESS`, and of `SAMPLES`."
progress_addresses() = (Int(pointer_from_objref(PROGRESS)), Int(pointer_from_objref(SAMPLES)))

"Take note of where the solve under way is."
function observe!()
    integrator = PROGRESS.integrator
    integrator === nothing || observe!(integrator)
    return
end

function observe!(integrator)
    PROGRESS.t, PROGRESS.dt = integrator.t, integrator.dt
    return
end
