using PyNODE: MAX_BLOCKS, OrderedSum, SampleTheta, add_part!, blocks, forward_each!, make_field, new_part!, pull_back,
    pullback_each

@testset "independent samples on $tasks tasks" for tasks in (1, 3)
    kernel = sample_kernel(Float64)
    fields = identity.([make_field(kernel, 1, :joint) for _ in 1:tasks])
    # The first two numbers have a row for each sample here, as conditioning tensors do.
    θ = reduce(hcat, [[0.1b + 0.4, 0.1b - 0.7, 0.6, 0.5] for b in 1:7])
    u0 = [[0.3b, -0.2] for b in 1:7]
    ts = [b == 2 ? [0.0, 0.8] : [0.0, 0.4, 0.2b + 0.5] for b in 1:7]
    g(b) = reshape(sin.(b .+ (1.0:(2 * length(ts[b])))), 2, :)
    options = Options(; solver = "Tsit5", rtol = 1e-6, atol = 1e-8, keep = :stages)
    found, counts = Dict{Int,Matrix{Float64}}(), zeros(Int, 7)
    guard = ReentrantLock()
    each = forward_each!(fields, deepcopy(u0), ts, SampleTheta([0, 0, 0.6, 0.5], [0], [θ[1:2, :]]), options) do b, values, _, n
        lock(() -> (found[b] = copy(values); counts[b] = n), guard)
    end
    @test sort(unique(each.owner)) ⊆ 1:tasks
    gradients, sums = Dict{Int,Any}(), Set{UInt}()
    total = pullback_each(each, g) do b, c, n
        lock(() -> (gradients[b] = deepcopy(c); push!(sums, objectid(c.θ))), guard)
        @test n > 0
    end
    alone, shared = make_field(kernel, 1, :joint), zeros(2)
    for b in 1:7
        values = zeros(2, length(ts[b]))
        before = alone.counts[1]
        _, fw = forward!(values, alone, copy(u0[b]), ts[b], θ[:, b], options)
        @test found[b] == values
        @test counts[b] == alone.counts[1] - before
        c = pull_back(fw, g(b))
        @test gradients[b].u0 == c.u0
        @test gradients[b].θ[1:2] == c.θ[1:2]
        shared .+= c.θ[3:4]
        @test gradients[b].ts == c.ts
    end
    @test total[3:4] == shared
    @test length(sums) <= tasks  # what the samples share is added up as it comes
end

@testset "samples are parted the same way whatever solves them" begin
    @test blocks(3) == [1:1, 2:2, 3:3]
    @test blocks(2MAX_BLOCKS + 1) |> first == 1:3
    @test reduce(vcat, blocks(1000)) == 1:1000
    @test length(blocks(1000)) <= MAX_BLOCKS
end

@testset "a sum in order, whichever part comes first" begin
    values = [1.0, 1e16, -1e16, 0.3, 1e-3]
    for order in ([1, 2, 3, 4, 5], [5, 4, 3, 2, 1], [2, 5, 1, 3, 4])
        sums = OrderedSum(zeros(2))
        for i in order
            part = new_part!(sums)
            part .= values[i]
            add_part!(sums, i, part)
        end
        @test sums.total == fill(foldl(+, values; init = 0.0), 2)
        @test isempty(sums.waiting)
    end
    @test foldl(+, values; init = 0.0) != foldl(+, reverse(values); init = 0.0)
end

@testset "threads share no variable that is assigned to: $f" for f in (
    PyNODE.share_out, PyNODE.forward_each!, Base.bodyfunction(only(methods(pullback_each, (Any, PyNODE.Each, Any)))),
    PyNODE.forward_each_typed, PyNODE.pullback_each_typed,
)
    codes = code_lowered(f)
    @test !isempty(codes)
    @test !any(code -> occursin("Core.Box", string(code)), codes)
end
