#include "model/session.h"

#include <string>
#include <utility>

#include "base/error.h"

namespace slimformer::model {

Session::Session(std::shared_ptr<const Plan> plan, ops::KvType type, std::optional<int> capacity)
    : plan_(std::move(plan)), kv_type_(type), cache_(*plan_, type) {
  const int limit = plan_->weights().spec.max_positions;
  capacity_ = capacity.value_or(limit);
  if (capacity_ < 1 || capacity_ > limit) {
    throw Error(ErrorKind::config, "capacity: expected 1 to the model's limit of " +
                                       std::to_string(limit) + " positions, found " +
                                       std::to_string(capacity_));
  }
}

Session::Session(const Session& other)
    : plan_(other.plan_),
      kv_type_(other.kv_type_),
      cache_(other.cache_),
      capacity_(other.capacity_),
      position_(other.position_.load()) {}

Session::Hold::Hold(Session& session) : session_(session) {
  if (session_.held_.test_and_set(std::memory_order_acquire)) {
    throw Error(ErrorKind::data,
                "a session is already in use by another call; fork it to use it from two threads");
  }
}

Session::Hold::~Hold() { session_.held_.clear(std::memory_order_release); }

std::size_t Session::KvBytes() {
  const Hold hold(*this);
  return cache_.bytes();
}

std::unique_ptr<Session> Session::Fork() {
  const Hold hold(*this);
  return std::unique_ptr<Session>(new Session(*this));
}

void Session::Rewind(int position) {
  const Hold hold(*this);
  if (position < 0 || position > position_) {
    throw Error(ErrorKind::data, "rewind: expected a position from 0 to " +
                                     std::to_string(position_) + ", found " +
                                     std::to_string(position));
  }
  cache_.Truncate(static_cast<std::size_t>(position));
  position_ = position;
}

}  // namespace slimformer::model
