// The processes that run one command together under mpirun, and how they all end when one fails.
#pragma once

#include <functional>
#include <string>

#include "comm/mpi.h"

namespace orchard {

class Job {
 public:
  explicit Job(Communicator& ranks) : ranks_(ranks), name_(fmt::format("rank {}", ranks.rank())) {}

  Communicator& ranks() { return ranks_; }
  bool is_first() const { return ranks_.rank() == 0; }

  // What reports call this rank: its number, until it is given its place in a mesh.
  const std::string& name() const { return name_; }
  void set_name(std::string name) { name_ = std::move(name); }

  // Runs `action` on every rank and waits for all. When it throws anywhere, the lowest of those
  // ranks says why, once, and the job ends cleanly on all of them with that exit code. For what
  // communicates nothing by itself: reading options, opening files.
  void together(const std::function<void()>& action);

  // The first rank's text, on every rank: under mpirun it alone has a standard input.
  std::string from_first(std::string text);

 private:
  Communicator& ranks_;
  std::string name_;
};

// Runs `body` as one rank of the job that this process was started in (alone: a job of one) and
// returns its exit code. An exception on one rank, whatever the others are waiting for, is reported
// and ends all of them within seconds.
int run_job(const std::function<int(Job&)>& body);

}  // namespace orchard
